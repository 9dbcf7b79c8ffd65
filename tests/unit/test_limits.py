"""Open files and memory maps: counted as they are, raised where we may, named where we may not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_fastmix.batch import open_files
from megatron_fastmix.batch.sources import build_datasets
from megatron_fastmix.config import load_config
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.start import limits
from tests.conftest import synthetic_documents, synthetic_rows, write_dataset, write_rows

COUNT = 8


def held() -> np.ndarray:
    """Open files and maps of this process."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return np.array([len(os.listdir("/proc/self/fd")), sum("/tmp" in line for line in maps)])


def build(folder: Path, kind: str, *, lean: bool) -> list[Any]:
    return [
        build_datasets(
            [([str(folder / f"{kind}{number}")], None), None, None],
            [None] * 3,
            seq_length=32,
            seed=1,
            tokenizer=load_tokenizer("ByteLevelTokenizer"),
            cache_path=str(folder / "cache"),
            lean=lean,
        )[0]
        for number in range(COUNT)
    ]


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    for number in range(COUNT):
        write_dataset(tmp_path / f"text{number}", synthetic_documents("noise", 20, number), 258)
        write_rows(tmp_path / f"rows{number}", synthetic_rows("noise", 20, number), 258)
    return tmp_path


@pytest.mark.parametrize("kind", ["text", "rows"])
@pytest.mark.parametrize("lean", [True, False])
def test_a_dataset_takes_as_many_as_are_counted(
    datasets: Path, monkeypatch, kind: str, lean: bool
) -> None:
    build(datasets, kind, lean=lean)  # indices come into the cache
    monkeypatch.setattr(open_files, "LEAN_ABOVE", 0 if lean else 10**6)
    numbers = {"text": 0, "answer_only": 0} | {
        "answer_only" if kind == "rows" else "text": COUNT,
    }
    promised = open_files.open_files(**numbers)
    before = held()
    kept = build(datasets, kind, lean=lean)
    files, maps = held() - before
    assert len(kept) == COUNT
    assert files == promised.files - open_files.OTHER_FILES
    assert maps == promised.maps - open_files.OTHER_MAPS


def test_few_open_files_change_no_sample(datasets: Path) -> None:
    for kind in ("text", "rows"):
        for one, other in zip(
            build(datasets, kind, lean=True), build(datasets, kind, lean=False), strict=True
        ):
            assert len(one) == len(other)
            for index in range(len(one)):
                np.testing.assert_array_equal(one[index]["tokens"], other[index]["tokens"])


def test_the_limit_of_files_is_raised_to_the_hard_one() -> None:
    code = (
        "import resource; from megatron_fastmix.start.limits import raise_open_files;"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)); raise_open_files();"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_too_little_is_named(search_values: dict, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(search_values))
    config = load_config(file)
    monkeypatch.setattr(limits, "MAX_MAP_COUNT", tmp_path / "maps")
    (tmp_path / "maps").write_text("65530\n")
    limits.check_limits(config)
    (tmp_path / "maps").write_text("6010\n")
    with pytest.raises(ConfigError, match=r"vm.max_map_count: 4 datasets need 6,020 memory maps"):
        limits.check_limits(config)
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (530, 530))
    monkeypatch.setattr(limits.resource, "setrlimit", lambda *_: None)
    with pytest.raises(ConfigError, match=r"RLIMIT_NOFILE: 4 datasets need 536 open files"):
        limits.check_limits(config)

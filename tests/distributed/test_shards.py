"""A source of several datasets: what is drawn of it, and what a search writes of it."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.batch.sources import build_source_blend, build_targets
from megatron_fastmix.cli.main import main
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.parallel.groups import DataParallelGroup
from tests.conftest import SOURCES, synthetic_documents, synthetic_rows, write_dataset, write_rows
from tests.distributed.searches import load, products_of, run_search

pytestmark = pytest.mark.slow

VOCABULARY = 258


def batches_of(config: SearchConfig) -> Batches:
    mixture = Mixture(config.source_names, config.mixture)
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    cache = str(config.data.data_cache_path)
    blend = build_source_blend(config, mixture, tokenizer, cache)
    return Batches(config, blend, build_targets(config, tokenizer, cache), DataParallelGroup())


def read(config: SearchConfig) -> list[list[np.ndarray]]:
    """The first batches of training, probe and objective, on one rank."""
    batches = batches_of(config)
    alpha = np.full(3, 1 / 3)
    found = [batches.training(step, 0) for step in range(3)] + batches.probe(1, alpha)
    found += [batch for term in batches.objective(1, alpha, np.ones(1)) for batch, _ in term]
    names = ("tokens", "loss_mask", "index", "tokens_per_sample")
    return [[np.asarray(getattr(batch, name)) for name in names] for batch in found]


@pytest.fixture
def rows_apart_and_together(search_values: dict, tmp_path: Path) -> tuple[dict, dict]:
    """Two searches over equal answer-only rows: in two datasets of unlike rows, and in one."""
    kinds = {"forward": 40, "noise": 25}
    parts = [synthetic_rows(kind, count, 5) for kind, count in kinds.items()]
    for number, rows in enumerate(parts):
        write_rows(tmp_path / f"web_{number}", rows, VOCABULARY)
    write_rows(tmp_path / "whole", parts[0] + parts[1], VOCABULARY)
    search_values["sources"] = [{"name": "web", "path": str(tmp_path / "web_?")}]
    for name in SOURCES[1:]:
        write_rows(tmp_path / name, synthetic_rows(name, 30, 3), VOCABULARY)
        search_values["sources"].append({"name": name, "path": str(tmp_path / name)})
    for number, rows in enumerate(parts):
        write_rows(tmp_path / f"held/{number}", rows[:20], VOCABULARY)
    write_rows(tmp_path / "held_whole", parts[0][:20] + parts[1][:20], VOCABULARY)
    search_values["targets"][0]["path"] = str(tmp_path / "held")
    together = copy.deepcopy(search_values)
    together["sources"][0]["path"] = str(tmp_path / "whole")
    together["targets"][0]["path"] = str(tmp_path / "held_whole")
    return search_values, together


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()


@pytest.mark.parametrize("weighting", ["loss", "sampling"])
def test_rows_in_shards_are_read_as_if_they_were_one_dataset(
    rows_apart_and_together: tuple[dict, dict], weighting: str
) -> None:
    apart, together = (
        read(load(values, **{"mixture.weighting": weighting})) for values in rows_apart_and_together
    )
    assert len(apart) == len(together)
    for here, there in zip(apart, together, strict=True):
        for one, other in zip(here, there, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.fixture
def sharded(search_values: dict, tmp_path: Path) -> dict:
    """A search over text whose first source is three datasets of unlike size."""
    for number, count in enumerate((60, 20, 40)):
        documents = synthetic_documents("forward", count, number)
        write_dataset(tmp_path / f"web_{number}", documents, VOCABULARY)
    search_values["sources"][0]["path"] = str(tmp_path / "web_*")
    return search_values


def test_one_epoch_is_one_epoch_of_each_shard(sharded: dict) -> None:
    blend = batches_of(load(sharded)).blend
    shards = blend.datasets[0].datasets
    assert len({len(shard) for shard in shards}) == 3
    epoch = sum(map(len, shards))
    assert blend.epoch_sizes[0] == epoch

    def digest(sample: dict[str, Any]) -> bytes:
        return sample["tokens"].numpy().tobytes()

    whole = Counter(digest(shard[i]) for shard in shards for i in range(len(shard)))
    for first in (0, epoch):
        drawn = [blend.sample("probe", 0, first + i) for i in range(epoch)]
        assert Counter(map(digest, drawn)) == whole
        assert {int(sample["dataset_id"]) for sample in drawn} == {0}


def test_a_list_of_one_dataset_changes_nothing(search_values: dict) -> None:
    before = read(load(search_values))
    for source in search_values["sources"]:
        source["path"] = [source["path"]]
    for here, there in zip(before, read(load(search_values)), strict=True):
        for one, other in zip(here, there, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_search_writes_an_entry_for_each_shard(sharded: dict, tmp_path: Path, capsys) -> None:
    config = load(sharded)
    alone = load(sharded, run_dir=tmp_path / "alone")
    run_ranks(2, run_search, config)
    run_ranks(1, run_search, alone)
    products, expected = products_of(config.run_dir), products_of(alone.run_dir)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(products / scale, expected / scale, atol=1e-3)
    run = Path(config.run_dir)
    source = json.loads((run / "mixture.json").read_text())["sources"][0]
    assert [shard["path"] for shard in source["shards"]] == [
        str(tmp_path / f"web_{number}") for number in range(3)
    ]
    words = (run / "blend.txt").read_text().split()
    weights = {path: float(weight) for weight, path in zip(words[::2], words[1::2], strict=True)}
    for shard in source["shards"]:
        share = source["weight"] * shard["tokens"] / source["tokens"]
        assert weights[shard["path"]] == pytest.approx(share, abs=2e-4)
    # What the exporter wrote is imported as the three sources that it was learned for.
    file = tmp_path / "search.yaml"
    file.write_text((run / "config.yaml").read_text())
    assert main(["import", str(run / "blend.txt"), "--config", str(file)]) == 0
    assert "initial_weights" in capsys.readouterr().out

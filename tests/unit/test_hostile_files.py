"""Nothing that a file says is run, and no name in it leads out of the run folder."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_fastmix.blend.weight_schedule import read_schedule
from megatron_fastmix.config import load_config
from megatron_fastmix.corpus.documents.chat_template import read_chat_template
from megatron_fastmix.corpus.indexed.answer_rows import read_answer_rows
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.corpus.indexed.manifest import read_manifest
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import FastMixError
from megatron_fastmix.export.import_blend import read_blend
from megatron_fastmix.lab.comparison.config import load_compare_config
from megatron_fastmix.lab.comparison.scenario import load_scenario
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.mixture_keys import UNIT
from megatron_fastmix.start.artifacts import write_run_artifacts


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "load", [load_config, lambda p: load_compare_config(p, [], []), load_scenario, read_schedule]
)
def test_yaml_makes_no_objects(load: Callable[[Path], Any], tmp_path: Path) -> None:
    sprung, file = tmp_path / "sprung", tmp_path / "hostile.yaml"
    file.write_text(f"sources: !!python/object/apply:os.mkdir ['{sprung}']\n")
    with pytest.raises(FastMixError, match=r"python/object"):
        load(file)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("mixture.json", read_mixture),
        ("blend.json", read_blend),
        ("data.idx", lambda p: inspect_indexed_dataset(p.with_suffix(""))),
        ("data.idx", lambda p: read_answer_rows(p.with_suffix(""), 8)),
        ("tokenizer.model", lambda p: load_tokenizer("SentencePieceTokenizer", str(p))),
        ("tokenizer.json", lambda p: load_tokenizer("HuggingFaceTokenizer", str(p))),
        ("template.jinja", read_chat_template),
    ],
)
def test_a_pickle_in_the_place_of_a_file_is_refused(
    name: str, load: Callable[[Path], Any], tmp_path: Path
) -> None:
    sprung, file = tmp_path / "sprung", tmp_path / name
    file.write_bytes(pickle.dumps(Trap(sprung)))
    file.with_suffix(".bin").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(FastMixError):
        load(file)
    assert not sprung.exists()


def test_a_pickle_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert read_manifest(tmp_path / "data") is None
    assert not (tmp_path / "sprung").exists()


def test_a_chat_template_reaches_nothing_outside_of_its_messages(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages.__class__.__base__.__subclasses__() }}")
    with pytest.raises((FastMixError, ValueError), match=r"unsafe|access"):
        read_chat_template(file).render([{"role": "assistant", "content": "a"}])


def test_names_do_not_lead_out_of_the_run_folder(
    search_values: dict, tmp_path: Path, learned_file: Callable[[dict], Path]
) -> None:
    names = ["../../outside", "/absolute", "a/b"]
    for source, name in zip(search_values["sources"], names, strict=True):
        source["name"] = name
    folder = learned_file(search_values)
    before = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    write_run_artifacts(folder, read_mixture(folder))
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} == before
    assert not Path("/absolute").exists()


@pytest.fixture
def learned_file(tmp_path: Path) -> Callable[[dict], Path]:
    """Writes the mixture.json of a finished search into a run folder, which it returns."""

    def write(values: dict) -> Path:
        folder = tmp_path / "deep" / "run"
        folder.mkdir(parents=True)
        counts = {"tokens": 100, "documents": 10, "epochs": 1.0}
        state = {"initial_weight": 1 / 3, "final_weight": 1 / 3, "weight": 1 / 3}
        sources = [
            source | counts | state | {"weight_std": 0.0, "logit": 0.0}
            for source in values["sources"]
        ]
        target = values["targets"][0] | {"tokens": 100, "weight": 1.0}
        content = {
            "format": "megatron_fastmix.mixture",
            "version": 1,
            "unit": UNIT,
            "seq_length": 32,
            "complete": True,
            "steps": 1,
            "outer_steps": 1,
            "averaging_fraction": 0.5,
            "averaged_outer_steps": 1,
            "token_budget": 1000,
            "seed": 1,
            "estimator": "finite_difference",
            "sources": sources,
            "targets": [target | {"initial_loss": None, "final_loss": None}],
            "cost": {},
            "versions": {},
            "config": values,
        }
        (folder / "mixture.json").write_text(json.dumps(content))
        return folder

    return write

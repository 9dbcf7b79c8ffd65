"""Nemotron's DataBlend and Model-Optimizer's data_blend.txt, there and back."""

import dataclasses
import json

import pytest
import yaml

from megatron_fastmix.cli.main import main
from megatron_fastmix.errors import DataError
from megatron_fastmix.export.blend import dataset_names, make_blend
from megatron_fastmix.export.import_blend import read_blend, read_named_blend
from megatron_fastmix.export.nemotron import source_of
from megatron_fastmix.export.registry import FORMATS

PUBLISHED = {
    "_comment": "Weights are unnormalized.",
    "_missing_categories": {"code": {"weight": 14.0}},
    "datasets": [
        {"name": "cc-high", "path": "hf://owner/cc", "subset": "High", "weight": 2.2},
        {"name": "cc-synthetic", "path": "hf://owner/cc", "subset": "Synthetic", "weight": 7.7},
        {"name": "math", "path": "hf://owner/math", "text_field": "text", "weight": 1.1},
        {"name": "unused", "path": "hf://owner/unused", "weight": 0},
    ],
}


def test_a_published_blend_is_read_by_its_names(tmp_path, capsys):
    path = tmp_path / "data_blend_raw_phase1.json"
    path.write_text(json.dumps(PUBLISHED))
    found = read_named_blend(path)
    assert [entry.name for entry in found] == ["cc-high", "cc-synthetic", "math"]
    assert [entry.share for entry in found] == pytest.approx([0.2, 0.7, 0.1])
    assert [entry.subset for entry in found] == ["High", "Synthetic", None]
    assert main(["import", str(path)]) == 0
    printed = capsys.readouterr()
    assert yaml.safe_load(printed.out) == {
        "sources": [
            {"name": "cc-high", "path": "hf://owner/cc"},
            {"name": "cc-synthetic", "path": "hf://owner/cc"},
            {"name": "math", "path": "hf://owner/math"},
        ],
        "mixture": {"initial_weights": [0.2, 0.7, 0.1]},
    }
    assert "often of raw text" in printed.err


def test_a_data_blend_fits_a_configuration_by_its_names(tmp_path, config_file, capsys):
    blend = {"train": [{"name": n, "path": "x"} for n in ("noise", "forward", "backward")]}
    blend["train"][0]["weight"] = 2
    path = tmp_path / "data_blend.json"
    path.write_text(json.dumps(blend))
    assert main(["import", str(path), "--config", str(config_file)]) == 0
    section = yaml.safe_load(capsys.readouterr().out)
    assert section == {"mixture": {"initial_weights": [0.25, 0.25, 0.5]}}
    blend["train"][0]["name"] = "nose"
    path.write_text(json.dumps(blend))
    assert main(["import", str(path), "--config", str(config_file)]) == 2
    assert "nose is no source of" in capsys.readouterr().err


def test_an_exported_data_blend_comes_back(tmp_path, make_mixture):
    blend = make_blend(make_mixture({"a": 0.7, "b": 0.25, "c": 0.05, "none": 0.0}))
    text = FORMATS["nemotron"].render(blend)
    assert json.loads(text)["valid"] == [{"name": "target", "path": "/data/target", "weight": 1.0}]
    (tmp_path / "blend.json").write_text(text)
    found = read_named_blend(tmp_path / "blend.json")
    assert [(e.name, e.path) for e in found] == [(n, f"/data/{n}") for n in "abc"]
    assert [entry.share for entry in found] == pytest.approx([0.7, 0.25, 0.05])


def test_datasets_are_told_from_sources_of_like_names():
    names = dataset_names({"b": 2, "b/1": 1})
    assert {
        source_of(name, ("b", "b/1")) for (owner, _), name in names.items() if owner == "b"
    } == {"b"}
    assert source_of(names["b/1", 1], ("b", "b/1")) == "b/1"


def test_model_optimizers_file_comes_back(tmp_path, make_mixture):
    blend = make_blend(make_mixture({"a": 0.7, "b": 0.3}))
    path = tmp_path / "data_blend.txt"
    path.write_text(FORMATS["model-optimizer"].render(blend))
    assert read_blend(path) == pytest.approx({"/data/a": 0.7, "/data/b": 0.3})
    path.write_text("60 /out/00_a\n20 /out/01_b_0\n20 /out/01_b_1\n")
    assert list(read_blend(path).values()) == pytest.approx([0.6, 0.2, 0.2])
    assert read_named_blend(path) is None


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ([{"name": "a"}], r"datasets\[0\].path: found None"),
        ([{"path": "a"}], r"datasets\[0\].name: found None"),
        ([{"name": "a", "path": "x", "weight": "2"}], "found '2'; expected a number"),
        ([{"name": "a", "path": "x", "weight": -2}], "found -2; expected 0 or more"),
        ([{"name": "a", "path": "x", "weight": True}], "found True"),
        ([{"name": "a", "path": "x", "weight": 0}], "no weight above 0"),
        ([{"name": "a", "path": "x"}, {"name": "a", "path": "y"}], "a occurs twice"),
        ([{"name": "a", "path": "x"}, "b"], r"datasets\[1\]: found 'b'"),
    ],
)
def test_what_is_no_data_blend_is_refused(tmp_path, datasets, message):
    (tmp_path / "blend.json").write_text(json.dumps({"datasets": datasets}))
    with pytest.raises(DataError, match=message):
        read_named_blend(tmp_path / "blend.json")


def test_megatrons_blend_by_split_is_none(tmp_path):
    path = tmp_path / "blend.json"
    path.write_text(json.dumps({"train": ["1", "/d/a"], "valid": None, "test": None}))
    assert read_named_blend(path) is None
    assert read_blend(path) == {"/d/a": 1.0}


def test_bridges_fine_tuning_weights_are_epochs_and_its_manifest_counts_rows(
    tmp_path, make_mixture
):
    mixture = make_mixture({"a": 0.6, "b": 0.4}, token_budget=10_000)
    a, b = mixture.sources
    # Rows of b are five times as long.
    longer = (dataclasses.replace(b.shards[0], rows=10),)
    mixture = dataclasses.replace(mixture, sources=(a, dataclasses.replace(b, shards=longer)))
    text = FORMATS["megatron-bridge-sources"].render(make_blend(mixture, "loss_tokens"))
    assert yaml.safe_load(text)["dataset"] == {
        "source": [{"path_or_dataset": "/data/a"}, {"path_or_dataset": "/data/b"}],
        # 6,000 and 4,000 tokens of 5,000 each.
        "source_weights": [1.2, 0.8],
    }
    chosen = FORMATS["megatron-bridge-manifest"]
    text = chosen.render(make_blend(mixture, chosen.counts))
    manifest = json.loads(text)
    assert manifest["train"][1::2] == ["/data/a", "/data/b"]
    # 60 and 8 rows.
    assert [float(w) for w in manifest["train"][::2]] == pytest.approx([60 / 68, 8 / 68], abs=1e-6)
    (tmp_path / "manifest.json").write_text(text)
    assert list(read_blend(tmp_path / "manifest.json")) == ["/data/a", "/data/b"]

"""What a search answers where the right answer is known, and what it says where it is not sure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.export.adjustment import Adjustment, adjust
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.report.summary import final_table
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.metrics import read_metrics
from tests.cases import slow
from tests.conftest import synthetic_documents, write_dataset
from tests.distributed.searches import load, run_search, weights_of

SCALED = {"mixture.optimizer": "scaled_mirror_descent", "mixture.lr": 0.5}
WEIGHTED = SCALED | {"hypergradient.probe_allocation": "weighted"}
"""What the comparison of methods uses."""


@pytest.mark.parametrize(
    ("seed", "changes"),
    [
        (1, {}),
        (2, {}),
        (1, SCALED),
        (2, SCALED | {"mixture.weighting": "sampling"}),
        (3, WEIGHTED),
    ],
)
@pytest.mark.slow
def test_a_planted_answer_is_recovered(
    search_values: dict, corpora: Path, seed: int, changes: dict[str, Any]
) -> None:
    """One source is useful, one is a copy of it, one is harmful, one is noise."""
    search_values["sources"] = [
        {"name": name, "path": str(corpora / name)}
        for name in ("forward", "backward", "noise", "forward_copy")
    ]
    config = load(
        search_values,
        **{
            "seed": seed,
            "hypergradient.probe_samples_per_source": 20,
            "training.train_iters": 60,
            "mixture.inner_steps": 3,
            "mixture.lr": 0.2,
            **changes,
        },
    )
    run_ranks(2, run_search, config)
    mixture = json.loads((Path(config.run_dir) / "mixture.json").read_text())
    weights = weights_of(config.run_dir)
    assert weights["forward"] + weights["forward_copy"] > 0.7
    assert 0.5 < weights["forward"] / weights["forward_copy"] < 2.0
    assert max(weights["backward"], weights["noise"]) < 0.2
    assert mixture["unit"] == "share of samples of seq_length tokens"
    for source in mixture["sources"]:
        implied = source["weight"] * mixture["token_budget"] / source["tokens"]
        assert source["epochs"] == pytest.approx(implied)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aggregation", "optimizer"),
    [("worst_case", {}), ("least_gain", {}), ("least_gain", SCALED)],
)
def test_no_target_is_sacrificed_to_another_that_conflicts(
    search_values: dict, corpora: Path, tmp_path: Path, aggregation: str, optimizer: dict[str, Any]
) -> None:
    """Two targets want one source each, and the mean hardly weighs one of them."""
    search_values["targets"] = [
        {"name": "up", "path": str(corpora / "target"), "weight": 0.95},
        {"name": "down", "path": str(corpora / "target_backward"), "weight": 0.05},
    ]
    found = {}
    for key in ("mean", aggregation):
        if key == "least_gain":
            for target in search_values["targets"]:
                del target["weight"]
        config = load(
            search_values,
            **{
                "run_dir": tmp_path / key,
                "objective.target_aggregation": key,
                "objective.target_lr": 5.0,
                "training.train_iters": 90,
                "mixture.inner_steps": 3,
                "mixture.lr": 0.2,
                **optimizer,
            },
        )
        run_ranks(1, run_search, config)
        found[key] = json.loads((Path(config.run_dir) / "mixture.json").read_text())
    weights = {
        key: {source["name"]: source["weight"] for source in mixture["sources"]}
        for key, mixture in found.items()
    }
    assert weights[aggregation]["backward"] > 2 * weights["mean"]["backward"]
    largest = {key: max(target["final_loss"] for target in found[key]["targets"]) for key in found}
    assert largest[aggregation] < largest["mean"]
    lines = read_metrics(tmp_path / aggregation / "metrics.jsonl")
    omega = [line["target_weight"]["down"] for line in lines if line["kind"] == "outer"]
    if aggregation == "worst_case":
        assert omega[0] == pytest.approx(0.05)
        assert omega[-1] > 0.2
    else:
        assert 0.2 < np.mean(omega) < 0.8
        assert weights[aggregation]["forward"] > 0.25
        assert weights[aggregation]["noise"] < 0.25
        # What every target is to count for afterwards is no business of the last step.
        assert [target["weight"] for target in found[aggregation]["targets"]] == [0.5, 0.5]


def test_a_run_whose_estimates_are_noise_says_so(
    search_values: dict, corpora: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    search_values["sources"] = [
        {"name": name, "path": str(corpora / name)} for name in ("noise", "noise_too")
    ]
    run_ranks(1, run_search, load(search_values))
    lines = read_metrics(Path(search_values["run_dir"]) / "metrics.jsonl")
    ratios = [line["noise_to_signal"] for line in lines if line["kind"] == "outer"]
    assert min(ratios) > 1
    assert "the last 3 estimates were noise" in capfd.readouterr().out


@pytest.mark.slow
def test_bounds_hold_during_a_search(search_values: dict) -> None:
    search_values["sources"][0]["max_weight"] = 0.4
    search_values["sources"][2]["min_weight"] = 0.2
    config = load(search_values, **{"training.train_iters": 60, "mixture.lr": 0.3})
    history = run_ranks(1, run_search, config)[0]["history"]
    assert history[:, 0].max() == pytest.approx(0.4)
    assert np.all(history[:, 0] <= 0.4 + 1e-12)
    assert np.all(history[:, 2] >= 0.2 - 1e-12)


either = pytest.mark.parametrize("settings", [slow({}), slow(WEIGHTED)], ids=["adam", "weighted"])


def learned(values: dict, folder: Path, sources: dict[str, Path], **changes: Any) -> dict:
    """The weights of a search of 60 steps over `sources` (name to prefix) in its own run folder."""
    values = values | {"sources": [{"name": n, "path": str(p)} for n, p in sources.items()]}
    settings = {
        "run_dir": folder,
        "data.data_cache_path": folder / "cache",
        "hypergradient.probe_samples_per_source": 20,
        "training.train_iters": 60,
        "mixture.inner_steps": 3,
        "mixture.lr": 0.2,
    }
    config = load(values, **(settings | changes))
    run_ranks(1, run_search, config)
    return weights_of(folder)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """A function: a name and documents to the prefix of a dataset of them."""
    vocab_size = load_tokenizer("ByteLevelTokenizer").vocab_size

    def write(name: str, *documents: list[list[int]]) -> Path:
        write_dataset(tmp_path / name, [d for some in documents for d in some], vocab_size)
        return tmp_path / name

    return write


@either
def test_a_duplicated_source_gets_no_more_than_the_original(
    search_values: dict, corpora: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Right: its worth does not grow by being listed twice, though it starts from two shares."""
    once = {name: corpora / name for name in ("forward", "backward", "noise")}
    found = []
    for sources in (once, once | {"copy": corpora / "forward_copy"}):
        folder = tmp_path / f"{len(sources)}"
        found.append(learned(search_values, folder, sources, **{"mixture.lr": 0.5} | settings))
    alone, twice = found
    assert abs(twice["forward"] + twice["copy"] - alone["forward"]) < 0.15
    assert twice["backward"] < alone["backward"] + 0.05


@either
def test_noise_loses_its_share(
    search_values: dict, corpora: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Right: it teaches nothing, however high its own loss stays."""
    names = ("forward", "noise", "noise_too")
    weights = learned(
        search_values, tmp_path / "run", {name: corpora / name for name in names}, **settings
    )
    assert max(weights["noise"], weights["noise_too"]) < 0.15
    assert weights["forward"] > 0.75


@either
def test_a_tiny_clean_source_is_raised_and_its_epochs_are_named(
    search_values: dict, corpora: Path, tmp_path: Path, write: Any, settings: dict[str, Any]
) -> None:
    """Right as far as single samples go; that the text runs out is for --max-epochs to settle."""
    dirty = synthetic_documents("forward", 400, 0), synthetic_documents("noise", 200, 1)
    sources = {
        "tiny": write("tiny", synthetic_documents("forward", 8, 5)),
        "dirty": write("dirty", *dirty),
        "noise": corpora / "noise",
    }
    weights = learned(search_values, tmp_path / "run", sources, **settings)
    assert weights["tiny"] > weights["dirty"] > weights["noise"]
    mixture = read_mixture(tmp_path / "run")
    assert mixture.epochs["tiny"] > 4 > mixture.epochs["dirty"]
    assert "Read more than 4 times: tiny" in final_table(mixture, blend_txt=None, blend_json=None)
    capped = adjust(mixture, Adjustment(fixed={}, groups={}, max_epochs=4)).mixture
    assert capped.epochs["tiny"] <= 4.01
    assert capped.weights["dirty"] == max(capped.weights.values())


@either
def test_a_partly_mislabelled_target_is_followed_in_proportion(
    search_values: dict, corpora: Path, tmp_path: Path, write: Any, settings: dict[str, Any]
) -> None:
    """Right for the target as it is: a fifth of it is of another kind, and pulls no more."""
    strangers = synthetic_documents("backward", 15, 98)
    path = write("mislabelled", synthetic_documents("forward", 60, 99), strangers)
    search_values["targets"] = [{"name": "target", "path": str(path)}]
    sources = {name: corpora / name for name in ("forward", "backward", "noise")}
    weights = learned(search_values, tmp_path / "run", sources, **settings)
    assert weights["forward"] > 0.5 > weights["backward"] > weights["noise"]


@either
def test_sizes_of_sources_do_not_move_the_answer(
    search_values: dict, corpora: Path, tmp_path: Path, write: Any, settings: dict[str, Any]
) -> None:
    """Right: a weight is about the worth of a sample, and sizes come in through epochs alone."""
    large = {
        name: write(name, synthetic_documents(name, 2000, 7)) for name in ("backward", "noise")
    }
    equal = {name: corpora / name for name in ("forward", "backward", "noise")}
    found = [
        learned(search_values, tmp_path / "equal", equal, **settings),
        learned(search_values, tmp_path / "unequal", equal | large, **settings),
    ]
    for name in equal:
        assert abs(found[0][name] - found[1][name]) < 0.1
    assert found[1]["forward"] > 0.6

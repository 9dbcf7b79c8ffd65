"""Searches over answer-only data: sharding, packing, and targets of another kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus.indexed.answer_rows import read_answer_rows
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.conftest import SOURCES
from tests.distributed.searches import claim_once, load, products_of, run_search


@pytest.fixture
def answer_values(search_values: dict, answer_corpora: Path) -> dict:
    search_values["sources"] = [
        {"name": name, "path": str(answer_corpora / name)} for name in SOURCES
    ]
    search_values["targets"] = [{"name": "target", "path": str(answer_corpora / "target")}]
    return search_values


@pytest.mark.parametrize(
    ("ranks", "stage", "packing"), [(2, 2, True), slow(2, 3, True), slow(4, 3, False)]
)
def test_products_depend_neither_on_sharding_nor_on_packing(
    answer_values: dict, tmp_path: Path, ranks: int, stage: int, packing: bool
) -> None:
    exact = {"mixture.lr": 0, "hypergradient.estimator": "per_source"}
    alone = load(
        answer_values,
        run_dir=tmp_path / "alone",
        **{"data.packing": False, "engine.zero_stage": 0, **exact},
    )
    run_ranks(1, run_search, alone)
    config = load(answer_values, **{"data.packing": packing, "engine.zero_stage": stage, **exact})
    run_ranks(ranks, run_search, config)
    expected, found = products_of(alone.run_dir), products_of(config.run_dir)
    scale = np.abs(expected).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found / scale, expected / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_useful_answers_are_found(answer_values: dict, answer_corpora: Path) -> None:
    changes = {"training.train_iters": 60, "mixture.inner_steps": 3, "mixture.lr": 0.2}
    config = load(answer_values, **changes)
    history = run_ranks(2, run_search, config)[0]["history"]
    assert history[-1].argmax() == 0
    assert history[-1][0] > 0.5
    mixture = json.loads((Path(config.run_dir) / "mixture.json").read_text())
    assert mixture["unit"] == "share of answer tokens"
    per_row = []
    for source in mixture["sources"]:
        rows = read_answer_rows(answer_corpora / source["name"], 32)
        assert source["rows"] == len(rows.kept)
        assert source["answer_tokens"] == rows.answer_tokens.sum()
        per_row.append(rows.answer_tokens[rows.kept].mean())
    # Sampling rows by `row_weight` yields answer tokens by `weight`.
    tokens = np.array([s["row_weight"] for s in mixture["sources"]]) * per_row
    weights = [source["weight"] for source in mixture["sources"]]
    np.testing.assert_allclose(tokens / tokens.sum(), weights, rtol=1e-9)


@pytest.mark.slow
def test_text_sources_are_searched_for_answers(search_values: dict, answer_corpora: Path) -> None:
    search_values["targets"] = [{"name": "target", "path": str(answer_corpora / "target")}]
    changes = {"training.train_iters": 60, "mixture.inner_steps": 3, "mixture.lr": 0.2}
    history = run_ranks(2, run_search, load(search_values, **changes))[0]["history"]
    assert history[-1].argmax() == 0


@pytest.fixture
def mixed_values(search_values: dict, answer_corpora: Path) -> dict:
    """The first source text, the others answer-only."""
    search_values["sources"] = [
        search_values["sources"][0],
        *({"name": name, "path": str(answer_corpora / name)} for name in SOURCES[1:]),
    ]
    search_values["targets"] = [{"name": "target", "path": str(answer_corpora / "target")}]
    return search_values


@pytest.mark.parametrize(("estimator", "packing"), [("one_pass", True), slow("per_source", False)])
def test_text_and_answers_in_one_blend_have_the_products_of_each_alone(
    mixed_values: dict, tmp_path: Path, estimator: str, packing: bool
) -> None:
    changes = {
        "mixture.lr": 0,
        "training.train_iters": 4,
        "mixture.inner_steps": 2,
        "objective.train_loss_weight": 0.2,
        "engine.zero_stage": 0,
    }
    alone = load(
        mixed_values,
        run_dir=tmp_path / "alone",
        **changes,
        **{"hypergradient.estimator": "per_source", "data.packing": False},
    )
    run_ranks(1, run_search, alone)
    config = load(
        mixed_values,
        **changes,
        **{"hypergradient.estimator": estimator, "data.packing": packing},
    )
    run_ranks(2, run_search, config)
    expected, found = products_of(alone.run_dir), products_of(config.run_dir)
    assert len(found) == 2
    scale = np.abs(expected).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found / scale, expected / scale, rtol=1e-4, atol=1e-4)


def test_weights_of_text_and_answers_are_shares_of_loss_tokens(
    mixed_values: dict, answer_corpora: Path
) -> None:
    changes = {"training.train_iters": 6, "mixture.inner_steps": 3, "mixture.lr": 0.2}
    config = load(mixed_values, **changes)
    run_ranks(1, run_search, config)
    folder = Path(config.run_dir)
    values = json.loads((folder / "mixture.json").read_text())
    assert values["unit"] == "share of loss tokens"
    text, *answers = values["sources"]
    assert text["loss_tokens"] == text["tokens"]
    assert text["answer_tokens"] is None
    length = config.data.seq_length
    per_sample = [length]
    for source in answers:
        rows = read_answer_rows(answer_corpora / source["name"], length)
        assert source["loss_tokens"] == source["answer_tokens"] == rows.answer_tokens.sum()
        per_sample.append(rows.answer_tokens[rows.kept].mean())
    # Drawn by the blend's shares, samples of text and rows yield loss tokens by `weight`.
    learned = read_mixture(folder / "mixture.json")
    weights = np.array([source["weight"] for source in values["sources"]])
    drawn = np.array(list(learned.shares("samples").values()))
    tokens = drawn * per_sample
    np.testing.assert_allclose(tokens / tokens.sum(), weights, rtol=1e-9)
    # And by the shares of rows, where a row of text is a document.
    rows = np.array([source["row_weight"] for source in values["sources"]])
    each = [source["loss_tokens"] / source["rows"] for source in values["sources"]]
    np.testing.assert_allclose(rows * each / (rows * each).sum(), weights, rtol=1e-9)
    # Every blend that the run wrote has those shares.
    blend = (folder / "blend.txt").read_text().split()
    written = dict(zip(blend[1::2], map(float, blend[::2]), strict=True))
    np.testing.assert_allclose(list(written.values()), drawn, atol=1e-4)


@pytest.mark.parametrize(("alpha", "losses"), [((0.8, 0.1, 0.1), "sampling")])
def test_draws_of_text_and_answers_follow_the_weights(
    mixed_values: dict, alpha: tuple, losses: str
) -> None:
    """Each source's loss is a mean per token of its own, whatever its samples' lengths: with the
    same α, weighting the loss and drawing by α have the same expectation."""
    changes = {
        "training.train_iters": 2,
        "mixture.inner_steps": 2,
        "mixture.weighting": losses,
        "mixture.initial_weights": list(alpha),
    }
    result = run_ranks(1, run_search, load(mixed_values, **changes))[0]
    assert result["complete"]
    # ln of the tokenizer's size at the start, for text and answers alike.
    assert all(4.5 < loss < 6.5 for loss in result["losses"])


def tokens_and_draws(config: SearchConfig) -> tuple[int, np.ndarray, np.ndarray]:
    """Counted tokens, samples drawn of each source, and the mean tokens of one."""
    claim_once(config)
    search = Search(config)
    training, drawn = search.batches.training, np.zeros(len(config.sources))

    def watched(step: int, micro_step: int) -> Batch:
        batch = training(step, micro_step)
        np.add.at(drawn, batch.index, 1.0)
        return batch

    search.batches.training = watched  # type: ignore[method-assign]
    search.run()
    return search.tokens, drawn, search.inputs.tokens_of_samples(config.data.seq_length)


def test_tokens_are_those_of_the_rows_that_were_drawn(mixed_values: dict) -> None:
    changes = {"training.train_iters": 4, "mixture.initial_weights": [0.05, 0.05, 0.9]}
    config = load(mixed_values, **{**changes, "mixture.weighting": "sampling"})
    ((tokens, drawn, each),) = run_ranks(1, tokens_and_draws, config)
    assert tokens == pytest.approx(drawn @ each, abs=4)
    assert abs(tokens / (drawn.sum() * each.mean()) - 1) > 0.05
    inner = [
        line for line in read_metrics(Path(config.run_dir) / "metrics.jsonl") if "loss" in line
    ]
    assert inner[-1]["tokens"] == tokens

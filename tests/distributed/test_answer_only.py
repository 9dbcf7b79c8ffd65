"""Searches over answer-only data: sharding, packing, and targets of another kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_fastmix.corpus.answer_rows import read_answer_rows
from megatron_fastmix.lab.forked_ranks import run_ranks
from tests.conftest import SOURCES
from tests.distributed.searches import load, products_of, run_search, slow


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
        per_row.append(rows.mean_answer_tokens)
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

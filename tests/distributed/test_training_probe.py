"""probe: training: products out of the training's own passes, which stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.hypergradient import Probe, Products, target_gradient
from megatron_fastmix.hypergradient.per_source import per_source
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.distributed.pretrained import fine_tuning_values
from tests.distributed.searches import (
    SAMPLING,
    load,
    plain_training,
    products_of,
    run_search,
)

pytestmark = pytest.mark.slow

TRAINING = {"hypergradient.probe": "training"}


def first_products(config: SearchConfig) -> np.ndarray:
    """⟨v, ∇L_k⟩ of the first outer step by `per_source`, over the batch of the optimizer step
    before it and, of sources without a sample there, over the probe's samples."""
    search = Search(config)
    n1, alpha = config.mixture.inner_steps, search.mixture.weights
    with search.open_report() as report:
        for _ in range(n1 - 1):
            search.inner_step(report)
    losses, parameters = search.outer_loop._losses, search.outer_loop.parameters
    (term,) = search.batches.objective(0, alpha, search.targets.weights)
    v = target_gradient(losses, parameters, term, precondition=search.outer_loop.precondition)
    batches = [
        search.batches.training(n1 - 1, number)
        for number in range(search.batches.accumulation_steps)
    ]
    index = np.concatenate([batch.index for batch in batches])
    present = search.batches.group.sum(np.bincount(index, minlength=len(alpha)) * 1.0) > 0
    batches += search.batches.probe(0, alpha, among=~present)
    probe = Probe(
        batches=batches,
        losses=losses,
        model=search.engine.module,
        parameters=parameters,
        num_sources=len(alpha),
        relative_step=1e-4,
    )
    (found,) = per_source(probe, [v])
    return Products.mean_by_source(found, len(alpha), search.batches.group).values


LOPSIDED = {"mixture.initial_weights": "[0.9, 0.09, 0.01]"}
ALONE = {"training.global_batch_size": 2, "training.micro_batch_size": 1}


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (2, {"engine.zero_stage": 3, **LOPSIDED}),
        slow(2, {"engine.zero_stage": 2, "training.micro_batch_size": 1, **LOPSIDED}),
        slow(2, {"engine.tensor_model_parallel_size": 2, **LOPSIDED}),
        # Two samples a step for three sources.
        (2, {"engine.zero_stage": 2, **ALONE}),
        slow(2, {**SAMPLING, **LOPSIDED, "engine.zero_stage": 1}),
        slow(2, {"engine.zero_stage": 3, "proxy.recompute_granularity": "full", **LOPSIDED}),
        slow(2, {"engine.zero_stage": 0, "proxy.num_experts": 4, **LOPSIDED}),
        slow(2, {"engine.zero_stage": 2, "objective.train_loss_weight": 0.2}),
        slow(2, {"engine.zero_stage": 3, "hypergradient.preconditioner": "adam"}),
    ],
)
def test_products_are_those_of_the_same_samples_by_per_source(
    search_values: dict, tmp_path: Path, ranks: int, changes: dict[str, Any]
) -> None:
    assert_same_products(search_values, tmp_path, ranks, changes)


def test_products_of_a_bf16_proxy(search_values: dict, tmp_path: Path) -> None:
    changes = {"engine.dtype": "bf16", "engine.zero_stage": 2}
    assert_same_products(search_values, tmp_path, 2, changes, tolerance=1e-2)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        (("Llama", {}), {"engine.zero_stage": 3}),
        (("Qwen2", {"tie_word_embeddings": True}), {"data.packing": True, "engine.zero_stage": 2}),
        (("Llama", {}), {"proxy.lora_rank": 4, "engine.zero_stage": 2}),
    ],
)
def test_products_of_pretrained_models(
    search_values: dict,
    answer_corpora: Path,
    tmp_path: Path,
    family: tuple[str, dict[str, Any]],
    changes: dict[str, Any],
) -> None:
    values = fine_tuning_values(search_values, answer_corpora, tmp_path, *family)
    assert_same_products(values, tmp_path, 2, changes)


def test_products_of_each_target(search_values: dict, corpora: Path, tmp_path: Path) -> None:
    """They add up to those of all, in one training pass as apart."""
    search_values["targets"].append({"name": "down", "path": str(corpora / "target_backward")})
    search_values["mixture"]["lr"] = 0
    changes = {**TRAINING, "engine.zero_stage": 2, "objective.train_loss_weight": 0.2}
    together = load(search_values, run_dir=tmp_path / "together", **changes)
    apart = load(search_values, **changes, **{"hypergradient.per_target": True})
    run_ranks(2, run_search, together)
    run_ranks(2, run_search, apart)
    expected, found = products_of(together.run_dir), products_of(apart.run_dir)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-5)


def assert_same_products(
    values: dict, tmp_path: Path, ranks: int, changes: dict[str, Any], tolerance: float = 1e-4
) -> None:
    exact = load(values, **changes, run_dir=tmp_path / "exact")
    (expected, *others) = run_ranks(ranks, first_products, exact)
    assert all(np.array_equal(expected, other) for other in others)
    run_ranks(ranks, run_search, load(values, **changes, **TRAINING))
    found = products_of(values["run_dir"])[0]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=tolerance)
    assert np.all(found != 0), "no source is without a sample"


@pytest.mark.parametrize("stage", [slow(0), slow(2), 3])
def test_training_is_bitwise_what_it_is_without(
    search_values: dict, tmp_path: Path, stage: int
) -> None:
    changes = {"engine.zero_stage": stage, "mixture.lr": 0}
    searched = run_ranks(2, run_search, load(search_values, **changes, **TRAINING))[0]
    plain = run_ranks(
        2, plain_training, load(search_values, run_dir=tmp_path / "plain", **changes)
    )[0]
    assert searched["losses"] == plain["losses"]
    assert searched["parameters"].tobytes() == plain["parameters"].tobytes()


@pytest.mark.slow
def test_a_stopped_search_goes_on_bitwise(search_values: dict, tmp_path: Path) -> None:
    """Stopped between v's step and the one before it, and after an outer step."""
    straight = load(search_values, **TRAINING, run_dir=tmp_path / "straight")
    expected = run_ranks(2, run_search, straight)[0]
    config = load(search_values, **TRAINING)
    for stop_at in (1, 2, 5):
        assert not run_ranks(2, run_search, config, stop_at)[0]["complete"]
    found = run_ranks(2, run_search, config)[0]
    assert found["history"].tobytes() == expected["history"].tobytes()
    assert found["parameters"].tobytes() == expected["parameters"].tobytes()


def test_other_estimators_are_refused(search_values: dict) -> None:
    with pytest.raises(ConfigError, match=r"hypergradient.probe: found 'training'.*per_source"):
        load(search_values, **TRAINING, **{"hypergradient.estimator": "per_source"})

"""The products of a search on gloo ranks, and what they are of: sharding, precision, objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fastmix.batch.batch import Role
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.deepspeed_engine.engine import learning_rate
from megatron_fastmix.deepspeed_engine.preconditioner import FLOOR
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.mixture.objective import regularizer_gradient
from megatron_fastmix.mixture.objective.least_gain import least_gain_weights
from megatron_fastmix.proxy.megatron_gpt import batch_losses
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.search.inner_step import inner_step
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.conftest import synthetic_documents, write_dataset
from tests.distributed.searches import (
    SAMPLING,
    load,
    plain_training,
    products_of,
    run_search,
)


@pytest.fixture
def reference(search_values: dict, tmp_path: Path) -> np.ndarray:
    """Exact products on one rank without ZeRO, with the mixture held still."""
    config = load(
        search_values,
        **{
            "run_dir": tmp_path / "reference",
            "engine.zero_stage": 0,
            "mixture.lr": 0,
            "hypergradient.estimator": "per_source",
        },
    )
    run_ranks(1, run_search, config)
    return products_of(config.run_dir)


@pytest.mark.parametrize(
    ("ranks", "tensor_parallel", "stage", "estimator"),
    [
        slow(2, 1, 0, "per_source"),
        slow(2, 1, 1, "per_source"),
        slow(2, 1, 2, "per_source"),
        slow(2, 1, 3, "per_source"),
        slow(4, 1, 2, "per_source"),
        slow(4, 1, 3, "per_source"),
        slow(2, 2, 0, "per_source"),
        slow(2, 2, 1, "per_source"),
        (2, 2, 2, "per_source"),
        slow(4, 2, 3, "per_source"),
        (1, 1, 2, "finite_difference"),
        slow(2, 1, 0, "finite_difference"),
        slow(2, 1, 1, "finite_difference"),
        slow(2, 1, 2, "finite_difference"),
        slow(2, 1, 3, "finite_difference"),
        slow(4, 1, 2, "finite_difference"),
        slow(4, 1, 3, "finite_difference"),
        slow(2, 2, 0, "finite_difference"),
        slow(2, 2, 3, "finite_difference"),
        slow(4, 2, 1, "finite_difference"),
        slow(4, 2, 2, "finite_difference"),
        slow(4, 2, 3, "finite_difference"),
    ],
)
def test_products_do_not_depend_on_sharding(
    search_values: dict,
    reference: np.ndarray,
    ranks: int,
    tensor_parallel: int,
    stage: int,
    estimator: str,
) -> None:
    config = load(
        search_values,
        **{
            "engine.zero_stage": stage,
            "engine.tensor_model_parallel_size": tensor_parallel,
            "mixture.lr": 0,
            "hypergradient.estimator": estimator,
        },
    )
    run_ranks(ranks, run_search, config)
    found = products_of(config.run_dir)
    # The finite difference has an error of its own, which sharding must not change either.
    tolerance = 1e-4 if estimator == "per_source" else 2e-3
    scale = np.abs(reference).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found / scale, reference / scale, rtol=tolerance, atol=tolerance)


def first_products(config: SearchConfig) -> np.ndarray:
    """Of the first outer step, before any training, with NaN in all memory of ZeRO-3's shards that
    lies beyond the end of a parameter, where DeepSpeed writes nothing."""
    search = Search(config)
    for parameter in search.outer_loop.parameters.parameters:
        shard = getattr(parameter, "ds_tensor", torch.empty(0)).data
        begin = search.group.rank * len(shard)
        shard[max(0, getattr(parameter, "ds_numel", 0) - begin) :] = torch.nan
    return search.outer_loop.step(1e-3).products.values


def test_what_lies_beyond_the_end_of_a_shard_is_no_part_of_the_parameters(
    search_values: dict, tmp_path: Path
) -> None:
    changes = {"hypergradient.estimator": "finite_difference", "training.micro_batch_size": 1}
    alone = load(search_values, run_dir=tmp_path / "alone", **changes)
    (expected,) = run_ranks(1, first_products, alone)
    # No parameter here has a multiple of 3 elements.
    found, *_ = run_ranks(
        3, first_products, load(search_values, **changes | {"engine.zero_stage": 3})
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.slow
def test_standard_errors_do_not_depend_on_sharding(search_values: dict, tmp_path: Path) -> None:
    """Under ZeRO-3 samples are summed over the ranks first: fewer entries, the same expectation."""
    errors = {}
    for stage in (2, 3):
        changes = {"mixture.lr": 0, "hypergradient.estimator": "per_source"}
        probe = {"hypergradient.probe_samples_per_source": 24, "engine.zero_stage": stage}
        config = load(search_values, run_dir=str(tmp_path / str(stage)), **changes, **probe)
        run_ranks(2, run_search, config)
        lines = read_metrics(tmp_path / str(stage) / "metrics.jsonl")
        errors[stage] = [
            list(line["products_standard_error"].values())
            for line in lines
            if line["kind"] == "outer"
        ]
    np.testing.assert_allclose(errors[3], errors[2], rtol=0.5)


def preconditioned_products(config: SearchConfig) -> np.ndarray:
    """⟨P⁻¹v, ∇L_k⟩ after one optimizer step, by autograd and AdamW's own state, (K,)."""
    search = Search(config)
    inner_step(search.engine, search.batches, 0, search.mixture.loss_weights)
    parameters = list(search.engine.module.parameters())

    def losses(batch: Any) -> torch.Tensor:
        return batch_losses(search.engine.module, batch)

    (objective,) = search.batches.objective(0, search.mixture.weights, search.targets.weights)
    total = sum((losses(batch) * weights).sum() for batch, weights in objective)
    v = torch.autograd.grad(total, parameters)
    state = search.engine.optimizer.state
    training = config.training
    moments = [state[p]["exp_avg_sq"] / (1 - training.adam_beta2) for p in parameters]
    divisors = [
        moment.clamp_min(FLOOR * float(moment.mean())).sqrt() + training.adam_eps
        for moment in moments
    ]
    probe = search.batches.probe(0, search.mixture.weights)
    group = np.concatenate([batch.index for batch in probe])
    products = []
    for source in range(len(config.sources)):
        chosen = torch.cat([losses(batch) for batch in probe])[torch.from_numpy(group == source)]
        gradient = torch.autograd.grad(chosen.mean(), parameters)
        parts = zip(v, divisors, gradient, strict=True)
        products.append(
            sum(float((a / d).double().flatten() @ g.double().flatten()) for a, d, g in parts)
        )
    return np.array(products)


@pytest.mark.parametrize(
    ("ranks", "tensor_parallel", "stage", "estimator"),
    [
        (1, 1, 0, "per_source"),
        slow(2, 1, 1, "per_source"),
        slow(2, 1, 2, "per_source"),
        slow(2, 1, 3, "per_source"),
        (2, 1, 2, "finite_difference"),
        slow(4, 2, 2, "finite_difference"),
        slow(4, 2, 3, "finite_difference"),
    ],
)
def test_the_preconditioner_is_that_of_adamw_at_every_sharding(
    search_values: dict,
    tmp_path: Path,
    ranks: int,
    tensor_parallel: int,
    stage: int,
    estimator: str,
) -> None:
    changes = {
        "hypergradient.preconditioner": "adam",
        "hypergradient.estimator": estimator,
        "mixture.inner_steps": 1,
        "training.train_iters": 1,
        "training.lr_warmup_iters": 1,
        # Without it, P⁻¹ magnifies the rounding of gradients that are nearly 0.
        "training.adam_eps": 1e-4,
    }
    config = load(
        search_values,
        **{
            "engine.zero_stage": stage,
            "engine.tensor_model_parallel_size": tensor_parallel,
            **changes,
        },
    )
    alone = load(search_values, run_dir=tmp_path / "alone", **{"engine.zero_stage": 0, **changes})
    (expected,) = run_ranks(1, preconditioned_products, alone)
    run_ranks(ranks, run_search, config)
    tolerance = 1e-4 if estimator == "per_source" else 2e-3
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        products_of(config.run_dir)[0] / scale, expected / scale, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(
    ("ranks", "tensor_parallel", "stage"),
    [slow(1, 1, 0), slow(2, 1, 1), slow(2, 1, 2), slow(2, 1, 3), slow(4, 2, 2), slow(4, 2, 3)],
)
def test_bf16_products_agree_with_exact_ones_and_leave_training_alone(
    search_values: dict, tmp_path: Path, ranks: int, tensor_parallel: int, stage: int
) -> None:
    changes = {
        "engine.dtype": "bf16",
        "engine.zero_stage": stage,
        "engine.tensor_model_parallel_size": tensor_parallel,
        "mixture.lr": 0,
    }
    config = load(search_values, **changes)
    searched = run_ranks(ranks, run_search, config)[0]
    exact = load(
        search_values,
        run_dir=tmp_path / "exact",
        **{"hypergradient.estimator": "per_source", **changes},
    )
    run_ranks(ranks, run_search, exact)
    found, expected = products_of(config.run_dir), products_of(exact.run_dir)
    scale = np.abs(expected).max(axis=1, keepdims=True)
    # Both share v; the exact products' own backward passes keep the 8 bits of bf16.
    np.testing.assert_allclose(found / scale, expected / scale, atol=0.02)
    plain = run_ranks(
        ranks, plain_training, load(search_values, run_dir=tmp_path / "plain", **changes)
    )[0]
    assert searched["losses"] == plain["losses"]
    assert searched["parameters"].tobytes() == plain["parameters"].tobytes()


def objective_weights(config: SearchConfig) -> list[tuple[tuple[Role, int], float]]:
    """((role, index), weight) of every sample of an objective, without padding."""
    search = Search(config)
    (parts,) = search.batches.objective(0, np.array([0.5, 0.3, 0.2]), search.targets.weights)
    return [
        ((Role(role), int(index)), float(weight))
        for batch, weights in parts
        for role, index, weight in zip(batch.role, batch.index, weights, strict=True)
        if role != Role.PADDING
    ]


def test_the_objective_weighs_targets_by_omega_and_training_by_beta(
    search_values: dict, corpora: Path
) -> None:
    search_values["targets"] = [
        {"name": "one", "path": str(corpora / "target"), "weight": 3.0},
        {"name": "two", "path": str(corpora / "target"), "weight": 1.0},
    ]
    config = load(search_values, **{"objective.train_loss_weight": 0.2})
    totals: dict[tuple[Role, int], float] = {}
    for rank in run_ranks(2, objective_weights, config):
        for sample, weight in rank:
            totals[sample] = totals.get(sample, 0) + weight
    expected = {
        (Role.TARGET, 0): 0.75,
        (Role.TARGET, 1): 0.25,
        (Role.SOURCE, 0): 0.2 * 0.5,
        (Role.SOURCE, 1): 0.2 * 0.3,
        (Role.SOURCE, 2): 0.2 * 0.2,
    }
    assert totals == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("estimator", ["per_source", slow("finite_difference")])
def test_products_of_each_target_sum_to_those_of_all(
    search_values: dict, corpora: Path, tmp_path: Path, estimator: str
) -> None:
    search_values["targets"].append(
        {"name": "down", "path": str(corpora / "target_backward"), "weight": 3.0}
    )
    changes = {
        "mixture.lr": 0,
        "objective.train_loss_weight": 0.2,
        "hypergradient.estimator": estimator,
    }
    together = load(search_values, run_dir=tmp_path / "together", **changes)
    apart = load(search_values, **{"hypergradient.per_target": True, **changes})
    run_ranks(2, run_search, together)
    run_ranks(2, run_search, apart)
    expected, found = products_of(together.run_dir), products_of(apart.run_dir)
    scale = np.abs(expected).max()
    tolerance = 1e-5 if estimator == "per_source" else 2e-3
    np.testing.assert_allclose(found / scale, expected / scale, rtol=tolerance, atol=tolerance)
    lines = read_metrics(Path(apart.run_dir) / "metrics.jsonl")
    last = [line["target_products"] for line in lines if line["kind"] == "outer"][-1]
    # Each target leans to the source that it resembles, more than the other target does.
    tilt = {name: values["forward"] - values["backward"] for name, values in last.items()}
    assert tilt["target"] > tilt["down"]


@pytest.mark.parametrize(
    ("options", "rtol"),
    [
        ({}, 1e-4),
        slow({"hypergradient.estimator": "per_source", "objective.train_loss_weight": 0.2}, None),
        slow({"hypergradient.estimator": "last_layer"}, 1e-4),
    ],
)
def test_least_gain_weighs_the_products_of_the_targets(
    search_values: dict, corpora: Path, options: dict[str, Any], rtol: float | None
) -> None:
    search_values["targets"].append({"name": "down", "path": str(corpora / "target_backward")})
    config = load(search_values, **{"objective.target_aggregation": "least_gain", **options})
    run_ranks(2, run_search, config)
    lines = read_metrics(Path(config.run_dir) / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "outer"]
    start = weights = np.full(3, 1 / 3)
    for line in steps:
        omega = np.array(list(line["target_weight"].values()))
        each = np.array([list(of.values()) for of in line["target_products"].values()])
        np.testing.assert_allclose(omega, least_gain_weights(each, weights, start), atol=1e-6)
        sums = list(line["products"].values())
        if rtol is not None:
            np.testing.assert_allclose(sums, omega @ each, rtol=rtol)
        else:  # β's part is in them, too
            assert np.abs(sums - omega @ each).min() > 0
        weights = np.array(list(line["weights"].values()))
    assert len(steps) == 3


@pytest.mark.slow
def test_products_with_beta_do_not_depend_on_sharding(search_values: dict, tmp_path: Path) -> None:
    changes = {
        "mixture.lr": 0,
        "objective.train_loss_weight": 0.3,
        "hypergradient.estimator": "per_source",
    }
    one = load(search_values, run_dir=tmp_path / "one", **{"engine.zero_stage": 0, **changes})
    two = load(search_values, run_dir=tmp_path / "two", **{"engine.zero_stage": 3, **changes})
    run_ranks(1, run_search, one)
    run_ranks(2, run_search, two)
    expected = products_of(one.run_dir)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        products_of(two.run_dir) / scale, expected / scale, rtol=1e-4, atol=1e-4
    )


def weighted_probes(config: SearchConfig) -> list[tuple[int, int, bytes]]:
    """(outer step, source, tokens) of this rank's probe samples in two outer steps."""
    search = Search(config)
    return [
        (step, int(source), row.numpy().tobytes())
        for step in range(2)
        for batch in search.batches.probe(step, np.array([0.7, 0.2, 0.1]))
        for role, source, row in zip(batch.role, batch.index, batch.tokens, strict=True)
        if role == Role.SOURCE
    ]


@pytest.mark.slow
def test_a_weighted_probe_does_not_depend_on_the_ranks_and_repeats_no_sample(
    search_values: dict, tmp_path: Path
) -> None:
    found = []
    for ranks in (1, 2, 4):
        changes = SAMPLING | {"run_dir": tmp_path / f"{ranks}"}
        parts = run_ranks(ranks, weighted_probes, load(search_values, **changes))
        found.append(sorted(sample for part in parts for sample in part))
    assert found[0] == found[1] == found[2]
    counts = np.bincount([source for step, source, _ in found[0] if step == 0])
    # 2 of each, and 0.7, 0.2 and 0.1 of the other 9.
    assert counts.tolist() == [8, 4, 3]
    assert len({tokens for _, _, tokens in found[0]}) == len(found[0])


def test_the_regularizer_follows_the_learning_rate(search_values: dict) -> None:
    """h = −η·(⟨v, ∇L_k⟩ − λ/η_peak·∂/∂α_k): the same balance of both at every η."""
    config = load(
        search_values, **{"objective.entropy_weight": 1e-3, "mixture.initial_weights": [5, 3, 2]}
    )
    run_ranks(1, run_search, config)
    steps = [
        line
        for line in read_metrics(Path(config.run_dir) / "metrics.jsonl")
        if line["kind"] == "outer"
    ]
    alpha, rates = np.array([0.5, 0.3, 0.2]), []
    for line in steps:
        eta = learning_rate(config.training, line["step"])
        gains = np.array(list(line["products"].values()))
        gains -= regularizer_gradient(alpha, 1e-3 / config.training.lr)
        expected = -eta * alpha * (gains - alpha @ gains)
        np.testing.assert_allclose(list(line["hypergradient"].values()), expected, rtol=1e-9)
        np.testing.assert_allclose(list(line["advantage"].values()), gains - alpha @ gains)
        alpha = np.array(list(line["weights"].values()))
        rates.append(eta)
    assert max(rates) > 2 * min(rates)


def probe_and_distinct(config: SearchConfig) -> tuple[list[int], list[int]]:
    """Different samples of each source in the second probe: as counted, and as they are."""
    search = Search(config)
    counted = search.batches.distinct_in_probe(1, search.mixture.weights).tolist()
    rows: list[set[bytes]] = [set() for _ in config.sources]
    for batch in search.batches.probe(1, search.mixture.weights):
        for source, row in zip(batch.index, batch.tokens, strict=True):
            rows[source].add(row.numpy().tobytes())
    return counted, [len(found) for found in rows]


def test_an_outer_step_at_the_end_of_a_schedule_that_falls_to_0_moves_the_mixture(
    search_values: dict, tmp_path: Path
) -> None:
    changes = {"training.min_lr": 0, "training.lr_decay_style": "linear", "mixture.lr": 0.1}
    config = load(search_values, **changes, **{"run_dir": tmp_path / "a", "mixture.inner_steps": 6})
    assert config.outer_steps == 1
    assert learning_rate(config.training, config.training.train_iters) == 0
    run_ranks(1, run_search, config)
    (line,) = (
        m for m in read_metrics(Path(config.run_dir) / "metrics.jsonl") if m["kind"] == "outer"
    )
    uniform = 1 / len(config.sources)
    moved = {name: weight - uniform for name, weight in line["weights"].items()}
    assert min(map(abs, moved.values())) > 1e-3
    assert all(moved[name] * line["advantage"][name] > 0 for name in moved)


def test_repeated_samples_of_a_probe_are_counted(search_values: dict, tmp_path: Path) -> None:
    vocab_size = load_tokenizer("ByteLevelTokenizer").vocab_size
    write_dataset(tmp_path / "tiny", synthetic_documents("noise", 3, 9), vocab_size)
    search_values["sources"][2] = {"name": "tiny", "path": str(tmp_path / "tiny")}
    config = load(search_values, **{"hypergradient.probe_samples_per_source": 20})
    ((counted, distinct),) = run_ranks(1, probe_and_distinct, config)
    assert counted == distinct
    assert counted[2] < 10 < counted[0]

"""The whole search on gloo ranks: sharding, agreement, resume, and training left undisturbed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import NonFiniteError, RankDivergenceError
from megatron_fastmix.hypergradient import Batch
from megatron_fastmix.parallel.forked_ranks import run_ranks
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.proxy.megatron_gpt import batch_losses, build_proxy
from megatron_fastmix.report.metrics import read_metrics
from megatron_fastmix.search import run_folder
from megatron_fastmix.search.engine import build_engine, learning_rate
from megatron_fastmix.search.inner_step import inner_step
from megatron_fastmix.search.loop import Search
from megatron_fastmix.targets.least_gain import least_gain_weights
from tests.distributed.searches import (
    load,
    parameters_of,
    products_of,
    run_search,
    slow,
    without_times,
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
        (2, 1, 3, "per_source"),
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
        (2, 1, 3, "finite_difference"),
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


def preconditioned_products(config: SearchConfig) -> np.ndarray:
    """⟨P⁻¹v, ∇L_k⟩ after one optimizer step, by autograd and AdamW's own state, (K,)."""
    search = Search(config)
    inner_step(search.engine, search.batches, 0, search.mixture.loss_weights)
    parameters = list(search.engine.module.parameters())

    def losses(batch: Any) -> torch.Tensor:
        return batch_losses(search.engine.module, batch)

    (objective,) = search.batches.objective(0, search.mixture.weights, search.targets.values)
    total = sum((losses(batch) * weights).sum() for batch, weights in objective)
    v = torch.autograd.grad(total, parameters)
    state = search.engine.optimizer.state
    training = config.training
    divisors = [
        (state[p]["exp_avg_sq"] / (1 - training.adam_beta2)).sqrt() + training.adam_eps
        for p in parameters
    ]
    probe = search.batches.probe(0, search.mixture.weights)
    group = np.concatenate([batch.group for batch in probe])
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
        (2, 1, 3, "per_source"),
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
    [slow(1, 1, 0), slow(2, 1, 1), (2, 1, 2), slow(2, 1, 3), slow(4, 2, 2), slow(4, 2, 3)],
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


def objective_weights(config: SearchConfig) -> list[tuple[int, float]]:
    """(group, weight) of every sample of an objective, without padding."""
    search = Search(config)
    (parts,) = search.batches.objective(0, np.array([0.5, 0.3, 0.2]), search.targets.values)
    return [
        (int(group), float(weight))
        for batch, weights in parts
        for group, weight in zip(batch.group, weights, strict=True)
        if weight
    ]


def test_the_objective_weighs_targets_by_omega_and_training_by_beta(
    search_values: dict, corpora: Path
) -> None:
    search_values["targets"] = [
        {"name": "one", "path": str(corpora / "target"), "weight": 3.0},
        {"name": "two", "path": str(corpora / "target"), "weight": 1.0},
    ]
    config = load(search_values, **{"objective.train_loss_weight": 0.2})
    totals: dict[int, float] = {}
    for rank in run_ranks(2, objective_weights, config):
        for group, weight in rank:
            totals[group] = totals.get(group, 0) + weight
    expected = {0: 0.75, 1: 0.25, -1: 0.2 * 0.5, -2: 0.2 * 0.3, -3: 0.2 * 0.2}
    assert totals == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("estimator", ["per_source", "finite_difference"])
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


@pytest.mark.parametrize(
    ("ranks", "tensor_parallel", "stage"),
    [slow(2, 1, 0), slow(2, 1, 1), slow(2, 1, 2), (2, 1, 3), slow(4, 2, 2)],
)
def test_logits_are_bitwise_equal_on_all_ranks(
    search_values: dict, ranks: int, tensor_parallel: int, stage: int
) -> None:
    changes = {
        "engine.zero_stage": stage,
        "engine.tensor_model_parallel_size": tensor_parallel,
    }
    first, *others = run_ranks(ranks, run_search, load(search_values, **changes))
    for other in others:
        assert first["logits"].tobytes() == other["logits"].tobytes()
    assert np.ptp(first["logits"]) > 0.05
    assert len(first["history"]) == 1 + 6 // 2


def diverge(config: SearchConfig) -> str:
    search = Search(config)
    if search.world.rank == 1:
        search.mixture.logits[2] += 1e-12
    with pytest.raises(RankDivergenceError) as caught:
        search.run()
    return str(caught.value)


def test_logits_that_differ_between_ranks_stop_the_run(search_values: dict) -> None:
    for message in run_ranks(2, diverge, load(search_values)):
        assert re.search(r"the logits of \w+ differ over 2 ranks", message)


def plain_training(config: SearchConfig) -> dict[str, Any]:
    """DeepSpeed training of the same proxy on the same data, without any search."""
    search = Search(config)
    engine = build_engine(config, search.inputs.tokenizer.vocab_size, search.group.size)
    losses = []
    for step in range(config.training.train_iters):
        sums, counts = inner_step(engine, search.batches, step, np.ones(3))
        sums, counts = search.group.sum(np.stack([sums, counts]))
        losses.append(float(sums.sum() / counts.sum()))
    search.engine = engine
    return {"losses": losses, "parameters": parameters_of(search)}


@pytest.mark.parametrize("stage", [slow(0), slow(1), slow(2), 3])
def test_with_outer_learning_rate_zero_training_is_bitwise_plain(
    search_values: dict, tmp_path: Path, stage: int
) -> None:
    changes = {"engine.zero_stage": stage, "mixture.lr": 0}
    searched = run_ranks(2, run_search, load(search_values, **changes))[0]
    plain = run_ranks(
        2, plain_training, load(search_values, run_dir=tmp_path / "plain", **changes)
    )[0]
    assert searched["losses"] == plain["losses"]
    assert searched["parameters"].tobytes() == plain["parameters"].tobytes()


def test_the_engines_step_is_adamw_on_the_weighted_loss(search_values: dict) -> None:
    """The inner step against a loop of torch alone, at 2 ranks with accumulation and ZeRO-2."""
    # A large ε keeps Adam from amplifying rounding where a gradient is nearly 0.
    config = load(search_values, **{"training.weight_decay": 0, "training.adam_eps": 1e-3})
    weights = np.array([0.5, 1.5, 1.0])
    found = run_ranks(2, weighted_engine_steps, config, weights)[0]
    expected = run_ranks(1, weighted_torch_steps, config, weights)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def weighted_engine_steps(config: SearchConfig, weights: np.ndarray) -> np.ndarray:
    search = Search(config)
    for step in range(2):
        inner_step(search.engine, search.batches, step, weights)
    return parameters_of(search)


def weighted_torch_steps(config: SearchConfig, weights: np.ndarray) -> np.ndarray:
    search = Search(config)
    model = build_proxy(
        config.proxy,
        vocab_size=search.inputs.tokenizer.vocab_size,
        seq_length=config.data.seq_length,
        seed=config.seed,
    )
    training = config.training
    optimizer = torch.optim.AdamW(
        model.parameters(),
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_eps,
        weight_decay=0,
    )
    for step in range(2):
        optimizer.param_groups[0]["lr"] = learning_rate(training, step)
        samples = [search.batches.blend[12 * step + i] for i in range(12)]
        tensors = {
            key: torch.stack([s[key] for s in samples]) for key in ("tokens", "labels", "loss_mask")
        }
        factors = torch.tensor([weights[s["dataset_id"]] for s in samples])
        optimizer.zero_grad()
        (batch_losses(model, Batch(group=np.zeros(12), **tensors)) * factors).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_grad)
        optimizer.step()
    return np.concatenate([p.detach().double().flatten().numpy() for p in model.parameters()])


OPTIONS = {
    "objective.target_aggregation": "worst_case",
    "objective.train_loss_weight": 0.2,
    "objective.entropy_weight": 1e-6,
    "hypergradient.preconditioner": "adam",
    "mixture.optimizer": "mirror_descent",
    "mixture.lr": 10.0,
    "mixture.lr_decay_style": "cosine",
}

LEAST_GAIN = {
    "objective.target_aggregation": "least_gain",
    "objective.train_loss_weight": 0.2,
    "mixture.initial_weights": [0.5, 0.3, 0.2],
}

SAMPLING = {
    "mixture.weighting": "sampling",
    "mixture.optimizer": "scaled_mirror_descent",
    "mixture.lr": 0.5,
    "hypergradient.probe_allocation": "weighted",
}


@pytest.mark.parametrize(
    ("ranks", "tensor_parallel", "stage", "options"),
    [
        slow(2, 1, 0, {}),
        slow(2, 1, 2, {}),
        (2, 1, 3, {}),
        slow(4, 2, 3, {}),
        (2, 1, 2, OPTIONS),
        slow(2, 1, 3, OPTIONS),
        slow(2, 1, 3, LEAST_GAIN),
        slow(2, 1, 1, SAMPLING),
        slow(2, 1, 1, {"engine.dtype": "bf16"}),
    ],
)
def test_a_stopped_search_resumes_bitwise(
    search_values: dict,
    corpora: Path,
    tmp_path: Path,
    ranks: int,
    tensor_parallel: int,
    stage: int,
    options: dict[str, Any],
) -> None:
    search_values["targets"].append({"name": "down", "path": str(corpora / "target_backward")})
    changes: dict[str, Any] = {
        "engine.zero_stage": stage,
        "engine.tensor_model_parallel_size": tensor_parallel,
        **options,
    }
    straight = load(search_values, run_dir=tmp_path / "straight", **changes)
    parts = load(search_values, run_dir=tmp_path / "parts", **changes)
    expected = run_ranks(ranks, run_search, straight)[0]
    stopped = run_ranks(ranks, run_search, parts, 4)[0]
    assert not stopped["complete"]
    assert not json.loads((tmp_path / "parts/mixture.json").read_text())["complete"]
    resumed = run_ranks(ranks, run_search, parts)[0]
    assert resumed["complete"]
    for key in ("logits", "history", "parameters"):
        assert resumed[key].tobytes() == expected[key].tobytes()
    assert without_times(tmp_path / "parts/metrics.jsonl") == without_times(
        tmp_path / "straight/metrics.jsonl"
    )


def sources_trained_on(config: SearchConfig) -> dict[str, Any]:
    search = Search(config)
    training, seen = search.batches.training, []

    def note(step: int, micro_step: int) -> Batch:
        batch = training(step, micro_step)
        seen.append((step, batch.group))
        return batch

    search.batches.training = note  # type: ignore[method-assign]
    search.run()
    counts = np.zeros((config.training.train_iters, 3))
    for step, group in seen:
        counts[step] += np.bincount(group, minlength=3)
    return {
        "counts": search.group.sum(counts),
        "history": np.stack(search.mixture.history),
        "factors": search.mixture.loss_weights,
    }


def weighted_probes(config: SearchConfig) -> list[tuple[int, int, bytes]]:
    """(outer step, source, tokens) of this rank's probe samples in two outer steps."""
    search = Search(config)
    return [
        (step, int(source), row.numpy().tobytes())
        for step in range(2)
        for batch in search.batches.probe(step, np.array([0.7, 0.2, 0.1]))
        for source, row in zip(batch.group, batch.tokens, strict=True)
        if source >= 0
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


@pytest.mark.slow
def test_under_sampling_each_batch_has_the_sources_by_the_weights_of_its_step(
    search_values: dict,
) -> None:
    changes = {
        **SAMPLING,
        "mixture.initial_weights": "[6, 3, 1]",
        "mixture.lr": 1.0,
        "training.train_iters": 12,
    }
    found = run_ranks(2, sources_trained_on, load(search_values, **changes))[0]
    history = found["history"]
    for step, counts in enumerate(found["counts"]):
        assert np.all(np.abs(counts - 12 * history[step // 2]) < 1)
    np.testing.assert_allclose(history[0], [0.6, 0.3, 0.1])
    assert np.abs(history[-2] - history[0]).max() > 2 / 12  # so that the draws had to follow
    assert found["factors"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_lines_and_steps_after_the_last_checkpoint_are_done_again(
    search_values: dict, tmp_path: Path
) -> None:
    """As after `kill -9`: steps 4 and 5 leave metrics, and half a checkpoint without its mark."""
    straight = load(search_values, run_dir=tmp_path / "straight")
    parts = load(search_values, run_dir=tmp_path / "parts")
    expected = run_ranks(2, run_search, straight)[0]
    run_ranks(2, run_search, parts, 5)
    (tmp_path / "parts/checkpoints/step-00000005/search.json").unlink()
    with open(tmp_path / "parts/metrics.jsonl", "a") as file:
        file.write('{"kind": "inner", "st')
    resumed = run_ranks(2, run_search, parts)[0]
    assert resumed["parameters"].tobytes() == expected["parameters"].tobytes()
    assert resumed["logits"].tobytes() == expected["logits"].tobytes()
    assert without_times(tmp_path / "parts/metrics.jsonl") == without_times(
        tmp_path / "straight/metrics.jsonl"
    )


def blow_up(config: SearchConfig) -> str:
    run_folder.claim(config)
    search = Search(config)
    original = search.batches.training

    def training(step: int, micro_step: int) -> Any:
        if step == 4:  # a parameter is lost, as by a broken device
            next(search.engine.module.parameters()).data.fill_(float("nan"))
        return original(step, micro_step)

    search.batches.training = training  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError) as caught:
        search.run()
    return str(caught.value)


def test_nan_stops_the_run_and_the_last_good_checkpoint_stays(search_values: dict) -> None:
    config = load(search_values)
    for message in run_ranks(2, blow_up, config):
        assert "step 5: the loss of source forward is nan" in message
    assert (Path(config.run_dir) / "checkpoints/step-00000003/search.json").exists()
    assert run_ranks(2, run_search, config)[0]["complete"]


def group_sum() -> tuple[np.ndarray, int]:
    group = DataParallelGroup()
    return group.sum(np.array([0.1, 0.2]) * (group.rank + 1)), group.size


def test_sums_are_equal_on_all_ranks() -> None:
    results = run_ranks(4, group_sum)
    assert {size for _, size in results} == {4}
    assert len({values.tobytes() for values, _ in results}) == 1
    np.testing.assert_allclose(results[0][0], [1.0, 2.0])

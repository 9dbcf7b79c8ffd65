"""⟨P⁻¹v, ∇L_k⟩ against the derivative of the AdamW step that is taken."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.deepspeed_engine import preconditioner
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.proxy.megatron_gpt import batch_losses
from megatron_fastmix.search.inner_step import inner_step
from megatron_fastmix.search.loop import Search
from tests.conftest import synthetic_documents, write_dataset
from tests.distributed.searches import load

STEPS = 12
"""Optimizer steps before the outer one."""


def derivatives(config: SearchConfig, floor: float) -> dict[str, np.ndarray]:
    """The derivatives of the target loss after one AdamW step with respect to α_k, but for −η,
    (K,): `exact`, and as `adam` estimates them."""
    preconditioner.FLOOR = floor  # in this rank's process
    search = Search(config)
    for step in range(STEPS):
        inner_step(search.engine, search.batches, step, search.mixture.loss_weights)
    model, training = search.engine.module, config.training
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(loss: Any) -> list[torch.Tensor]:
        return [g.double() for g in torch.autograd.grad(loss, parameters)]

    (objective,) = search.batches.objective(0, search.mixture.weights, search.targets.weights)
    v = gradient(sum((batch_losses(model, batch) * weights).sum() for batch, weights in objective))
    batches = search.batches.probe(0, search.mixture.weights)
    index = torch.from_numpy(np.concatenate([batch.index for batch in batches]))
    sources = []
    for k in range(len(config.sources)):
        losses = torch.cat([batch_losses(model, batch) for batch in batches])
        sources.append(gradient(losses[index == k].mean()))
    alpha = search.mixture.weights
    mean = [
        sum(a * part for a, part in zip(alpha, parts, strict=True))
        for parts in zip(*sources, strict=True)
    ]

    state = search.engine.optimizer.state
    beta1, beta2, eps = training.adam_beta1, training.adam_beta2, training.adam_eps
    c1, c2 = 1 - beta1 ** (STEPS + 1), 1 - beta2 ** (STEPS + 1)
    exact = np.zeros(len(sources))
    for i, parameter in enumerate(parameters):
        first, second = (state[parameter][key].double() for key in ("exp_avg", "exp_avg_sq"))
        first = (beta1 * first + (1 - beta1) * mean[i]) / c1
        root = ((beta2 * second + (1 - beta2) * mean[i] ** 2) / c2).sqrt()
        for k, parts in enumerate(sources):
            slope = (1 - beta1) / c1 * parts[i] / (root + eps)
            of_root = (1 - beta2) / c2 * mean[i] * parts[i] / root.clamp_min(1e-300)
            slope -= first * of_root / (root + eps) ** 2
            exact[k] += float((v[i] * slope).sum())

    vector = [part.float() for part in v]
    assert search.outer_loop.precondition is not None
    search.outer_loop.precondition(parameters, vector)
    pairs = [zip(vector, parts, strict=True) for parts in sources]
    products = np.array([sum(float((a * b).sum()) for a, b in pair) for pair in pairs])
    # The moment takes up this share of a gradient: a factor that all sources have in common.
    return {"exact": exact, "adam": (1 - beta1) / c1 * products}


def error(found: dict[str, np.ndarray]) -> float:
    """Of the differences between sources, relative."""
    exact, estimate = (found[key] - found[key].mean() for key in ("exact", "adam"))
    return float(np.linalg.norm(exact - estimate) / np.linalg.norm(exact))


@pytest.fixture
def untied(search_values: dict, tmp_path: Path) -> SearchConfig:
    """An output layer of its own, and tokens that target and probe hold, and training hardly."""
    vocab_size = load_tokenizer("ByteLevelTokenizer").vocab_size
    high = [[128 + token for token in text] for text in synthetic_documents("forward", 120, 5)]
    write_dataset(tmp_path / "high", high[:90], vocab_size)
    write_dataset(
        tmp_path / "mixed", synthetic_documents("forward", 40, 99) + high[90:], vocab_size
    )
    search_values["sources"][2] = {"name": "high", "path": str(tmp_path / "high")}
    search_values["targets"] = [{"name": "mixed", "path": str(tmp_path / "mixed")}]
    return load(
        search_values,
        **{
            "mixture.weighting": "sampling",
            "mixture.initial_weights": [0.495, 0.495, 0.01],
            "proxy.untie_embeddings_and_output_weights": True,
            "engine.zero_stage": 0,
            "training.clip_grad": 0,
            "training.train_iters": 20,
            "hypergradient.preconditioner": "adam",
            "hypergradient.target_samples": 24,
            "hypergradient.probe_samples_per_source": 24,
        },
    )


@pytest.mark.parametrize(
    ("floor", "least", "most"), [(preconditioner.FLOOR, 0.0, 0.3), (0.0, 100.0, math.inf)]
)
def test_rows_of_tokens_not_yet_met_do_not_drown_the_others(
    untied: SearchConfig, floor: float, least: float, most: float
) -> None:
    """Their moment is 0: without a floor they are divided by eps, and are all that counts."""
    (found,) = run_ranks(1, derivatives, untied, floor)
    assert least <= error(found) < most


def without_a_gradient_so_far(config: SearchConfig) -> tuple[float, float]:
    """Of P⁻¹v, with v of ones, the largest element of a parameter whose moments are all 0, as those
    of an expert that no token has reached, and of another."""
    search = Search(config)
    inner_step(search.engine, search.batches, 0, search.mixture.loss_weights)
    parameters = [p for p in search.engine.module.parameters() if p.requires_grad]
    search.engine.optimizer.state[parameters[0]]["exp_avg_sq"].zero_()
    vector = [torch.ones_like(p) for p in parameters]
    assert search.outer_loop.precondition is not None
    search.outer_loop.precondition(parameters, vector)
    return float(vector[0].abs().max()), float(vector[1].abs().max())


def test_a_parameter_without_a_gradient_so_far_does_not_count(untied: SearchConfig) -> None:
    ((none, other),) = run_ranks(1, without_a_gradient_so_far, untied)
    assert none == 0 < other

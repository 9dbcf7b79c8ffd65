"""One step of the mixture: products, hypergradient, logits."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import NonFiniteError
from megatron_fastmix.hypergradient import ESTIMATORS, Batch, OuterProblem, Products
from megatron_fastmix.mixture import Mixture, logit_gradient
from megatron_fastmix.parallel.parameters import Parameters
from megatron_fastmix.proxy.megatron_gpt import sample_losses
from megatron_fastmix.search.batches import Batches


@dataclass(frozen=True, kw_only=True)
class OuterResult:
    """What one outer step saw and did."""

    target_losses: np.ndarray
    """Mean loss of each target on its samples of this step, before it, (V,)."""
    products: Products
    """⟨v, ∇L_k⟩."""
    gradient: np.ndarray
    """∂/∂z, (K,)."""
    seconds: float
    """Wall time on this rank."""


def outer_step(
    config: SearchConfig,
    model: torch.nn.Module,
    parameters: Parameters,
    batches: Batches,
    mixture: Mixture,
    inner_lr: float,
) -> OuterResult:
    """Moves the logits once, equally on all ranks; θ and the engine stay as they were.

    Every rank must call. Raises `NonFiniteError` (with the source's name) on NaN or Inf, before
    the logits move, and `RankDivergenceError` where the logits of ranks differ afterwards.
    """
    began = time.monotonic()
    number, group = mixture.outer_steps, batches.group
    losses = np.zeros((2, len(config.targets)))

    def keep_losses(batch: Batch, values: torch.Tensor) -> None:
        of_target = batch.group >= 0
        np.add.at(losses[0], batch.group[of_target], values.double().cpu().numpy()[of_target])
        np.add.at(losses[1], batch.group[of_target], 1)

    problem = OuterProblem(
        losses=lambda batch: sample_losses(model, batch.tokens, batch.labels, batch.loss_mask),
        parameters=parameters,
        objective=batches.objective(number, mixture.weights),
        probe=batches.probe(number),
        num_sources=len(mixture.names),
        group=group,
        relative_step=config.hypergradient.relative_step,
    )
    products = ESTIMATORS[config.hypergradient.estimator](problem, keep_losses)
    sums, counts = group.sum(losses)
    target_losses = sums / counts
    _check_finite(target_losses, [f"target {t.name}: loss" for t in config.targets], number)
    _check_finite(products.values, [f"source {n}: ⟨v, ∇L⟩" for n in mixture.names], number)

    gradient = logit_gradient(
        products.values,
        mixture.weights,
        inner_lr,
        config.mixture.entropy_weight,
        products.seen,
    )
    mixture.update(gradient, products.seen)
    group.check_equal(mixture.logits, mixture.names, "the logits")
    return OuterResult(
        target_losses=target_losses,
        products=products,
        gradient=gradient,
        seconds=time.monotonic() - began,
    )


def _check_finite(values: np.ndarray, names: list[str], number: int) -> None:
    for name, value in zip(names, values, strict=True):
        if not np.isfinite(value):
            raise NonFiniteError(
                f"outer step {number}: {name} is {value}; lower training.lr or raise "
                "training.lr_warmup_iters, and resume from the last checkpoint"
            )

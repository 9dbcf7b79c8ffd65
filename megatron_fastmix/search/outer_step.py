"""One step of the mixture: products, hypergradient, logits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.deepspeed_engine.preconditioner import AdamPreconditioner
from megatron_fastmix.errors import NonFiniteError
from megatron_fastmix.hypergradient import (
    ESTIMATORS,
    Batch,
    OuterProblem,
    Products,
    noise_to_signal,
)
from megatron_fastmix.mixture.mixture import Mixture, regularizer_gradient
from megatron_fastmix.mixture.objective.least_gain import least_gain_weights
from megatron_fastmix.mixture.objective.target_weights import TargetWeights
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.parameters import Parameters
from megatron_fastmix.proxy.megatron_gpt import batch_losses


@dataclass(frozen=True, kw_only=True)
class OuterResult:
    """What one outer step saw and did."""

    target_losses: np.ndarray
    """Mean loss of each target on its samples of this step, before it, (V,)."""
    target_weights: np.ndarray
    """ω of this step's products, (V,)."""
    products: Products
    """⟨v, ∇L_k⟩."""
    target_products: np.ndarray | None
    """⟨∇ℓ_v, ∇L_k⟩ of each target, (V, K), where estimated apart."""
    noise_to_signal: float | None
    """Of the products; see `hypergradient.noise_to_signal`."""
    gradient: np.ndarray
    """∂/∂z, (K,)."""
    lr: float
    """Outer learning rate."""
    seconds: float
    """Wall time on this rank."""


class OuterLoop:
    """Moves the logits of `mixture`; θ and the engine stay as they were."""

    def __init__(
        self,
        config: SearchConfig,
        model: torch.nn.Module,
        parameters: Parameters,
        batches: Batches,
        mixture: Mixture,
        targets: TargetWeights,
        world: DataParallelGroup,
        precondition: AdamPreconditioner | None,
    ) -> None:
        """`world` are all ranks, tensor-parallel ones included."""
        self.config = config
        self.model = model
        self.parameters = parameters
        self.batches = batches
        self.mixture = mixture
        self.targets = targets
        self.world = world
        self.precondition = precondition

    def step(self, inner_lr: float) -> OuterResult:
        """One outer step at inner learning rate η, equal on all ranks.

        Every rank must call. Raises `NonFiniteError` (with the source's name) on NaN or Inf, before
        the logits move, and `RankDivergenceError` where the logits of ranks differ afterwards.
        """
        began = time.monotonic()
        config, mixture, batches = self.config, self.mixture, self.batches
        number, omega = mixture.outer_steps, self.targets.values
        losses = np.zeros((2, len(config.targets)))

        def keep_losses(batch: Batch, values: torch.Tensor) -> None:
            of_target = batch.group >= 0
            np.add.at(losses[0], batch.group[of_target], values.double().cpu().numpy()[of_target])
            np.add.at(losses[1], batch.group[of_target], batch.sample_weights()[of_target])

        probe = batches.probe(number, mixture.weights)

        def estimate(objective: Sequence[tuple[Batch, torch.Tensor]]) -> Products:
            problem = OuterProblem(
                losses=self._losses,
                parameters=self.parameters,
                objective=objective,
                probe=probe,
                num_sources=len(mixture.names),
                group=batches.group,
                relative_step=config.hypergradient.relative_step,
                precondition=self.precondition,
            )
            return ESTIMATORS[config.hypergradient.estimator](problem, keep_losses)

        terms = [estimate(term) for term in batches.objective(number, mixture.weights, omega)]
        sums, counts = batches.group.sum(losses)
        target_losses = sums / counts
        _check_finite(target_losses, [f"target {t.name}: loss" for t in config.targets], number)
        for term in terms:
            _check_finite(term.values, [f"source {n}: ⟨v, ∇L⟩" for n in mixture.names], number)
        target_products = None
        if config.estimates_per_target:
            target_products = np.stack([term.values for term in terms[: len(omega)]])
            if config.objective.target_aggregation == "least_gain":
                omega = least_gain_weights(target_products, mixture.weights, mixture.history[0])
            # The β term follows those of the targets and has its factor already.
            factors = [*omega, *[1.0] * (len(terms) - len(omega))]
            terms = [term.scaled(factor) for term, factor in zip(terms, factors, strict=True)]
        products = Products.total(terms)

        lr = mixture.lr
        # FastMix, horizon n2 = 1: ∂ℓ/∂α_k = −η·⟨v, ∇L_k⟩, and the term on α itself.
        gradient = -inner_lr * products.values + regularizer_gradient(
            mixture.weights, config.objective.entropy_weight, config.objective.prior_weights
        )
        slope = mixture.update(gradient, products.seen)
        self.targets.update(target_losses)
        self.world.check_equal(mixture.logits, mixture.names, "the logits")
        return OuterResult(
            target_losses=target_losses,
            target_weights=omega,
            products=products,
            target_products=target_products,
            noise_to_signal=noise_to_signal(terms),
            gradient=slope,
            lr=lr,
            seconds=time.monotonic() - began,
        )

    def _losses(self, batch: Batch) -> torch.Tensor:
        return batch_losses(self.model, batch)


def _check_finite(values: np.ndarray, names: list[str], number: int) -> None:
    for name, value in zip(names, values, strict=True):
        if not np.isfinite(value):
            raise NonFiniteError(
                f"outer step {number}: {name} is {value}; lower training.lr or raise "
                "training.lr_warmup_iters, and resume from the last checkpoint"
            )

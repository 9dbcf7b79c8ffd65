"""One step of the mixture: products, hypergradient, logits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_fastmix.batch.batch import Batch, Role
from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.deepspeed_engine.preconditioner import AdamPreconditioner
from megatron_fastmix.errors import NonFiniteError
from megatron_fastmix.hypergradient import (
    ESTIMATORS,
    Probe,
    Products,
    noise_to_signal,
    target_gradient,
)
from megatron_fastmix.hypergradient.sites import check_supported
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.mixture.objective import TargetAggregation, regularizer_gradient
from megatron_fastmix.mixture.optimality import advantages
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.parameters import Parameters, Vector
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
    advantage: np.ndarray
    """A_k, (K,); NaN where the probe had no sample; see `mixture.optimality`."""
    advantage_standard_error: np.ndarray
    """(K,), over the probe's samples at this v."""
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
        targets: TargetAggregation,
        world: DataParallelGroup,
        tensor: DataParallelGroup,
        precondition: AdamPreconditioner | None,
    ) -> None:
        """`world` are all ranks, `tensor` those that share the layers of this one. Raises
        `ConfigError` for a model that the estimator cannot take."""
        if config.hypergradient.estimator == "one_pass":
            check_supported(model)
        self.config = config
        self.model = model
        self.parameters = parameters
        self.batches = batches
        self.mixture = mixture
        self.targets = targets
        self.world = world
        self.tensor = tensor
        self.precondition = precondition

    def step(self, inner_lr: float) -> OuterResult:
        """One outer step at inner learning rate η, equal on all ranks.

        Every rank must call. Raises `NonFiniteError` (with the source's name) on NaN or Inf, before
        the logits move, and `RankDivergenceError` where the logits of ranks differ afterwards.
        """
        began = time.monotonic()
        config, mixture, number = self.config, self.mixture, self.mixture.outer_steps
        alpha, lr = mixture.weights, mixture.lr

        target_losses = TargetLosses(len(config.targets), self.batches.group)
        terms = self._products(self._target_gradients(number, alpha, target_losses), number, alpha)
        losses = self.tensor.of_first(target_losses.mean())
        self._check_finite(losses, terms, number)

        target_products, omega = None, self.targets.weights
        if config.estimates_per_target:
            target_products = np.stack([term.values for term in terms[: len(omega)]])
            omega = self.targets.choose(target_products, alpha, mixture.history[0])
            # The β term follows those of the targets and has its factor already.
            factors = [*omega, *[1.0] * (len(terms) - len(omega))]
            terms = [term.scaled(factor) for term, factor in zip(terms, factors, strict=True)]
        products = Products.total(terms)

        # FastMix, horizon n2 = 1: ∂ℓ/∂α_k = −η·⟨v, ∇L_k⟩, and the term on α itself, whose λ is that
        # of the peak of η: by a decayed η it would weigh more and more.
        gains = products.values - regularizer_gradient(
            alpha,
            config.objective.entropy_weight / config.training.lr,
            config.objective.prior_weights,
        )
        advantage, error = advantages(gains, products.standard_error, alpha, products.seen)
        slope = mixture.update(-inner_lr * gains, products.seen, advantage)
        self.targets.update(losses)
        self.world.check_equal(mixture.logits, mixture.names, "the logits")
        return OuterResult(
            target_losses=losses,
            target_weights=omega,
            products=products,
            target_products=target_products,
            noise_to_signal=noise_to_signal(terms),
            gradient=slope,
            advantage=advantage,
            advantage_standard_error=error,
            lr=lr,
            seconds=time.monotonic() - began,
        )

    def _target_gradients(
        self, number: int, alpha: np.ndarray, target_losses: TargetLosses
    ) -> Iterator[Vector]:
        """v of each term of the objective, one at a time."""
        for term in self.batches.objective(number, alpha, self.targets.weights):
            yield target_gradient(
                self._losses,
                self.parameters,
                term,
                on_losses=target_losses.add,
                precondition=self.precondition,
            )

    def _products(
        self, vectors: Iterable[Vector], number: int, alpha: np.ndarray
    ) -> list[Products]:
        """⟨v, ∇L_k⟩ of each v."""
        probe = Probe(
            batches=self.batches.probe(number, alpha),
            losses=self._losses,
            model=self.model,
            parameters=self.parameters,
            num_sources=len(alpha),
            relative_step=self.config.hypergradient.relative_step,
        )
        found = ESTIMATORS[self.config.hypergradient.estimator](probe, vectors)
        group, distinct = self.batches.group, self.batches.distinct_in_probe(number, alpha)
        means = [Products.mean_by_source(each, len(alpha), group, distinct) for each in found]
        # Each tensor-parallel rank has summed over a communicator of its own, whose order of
        # summation, and so the last bits, may be others.
        return [products.agreed(self.tensor) for products in means]

    def _check_finite(self, losses: np.ndarray, terms: Sequence[Products], number: int) -> None:
        _check_finite(losses, [f"target {t.name}: loss" for t in self.config.targets], number)
        for term in terms:
            names = [f"source {name}: ⟨v, ∇L⟩" for name in self.mixture.names]
            _check_finite(term.values, names, number)

    def _losses(self, batch: Batch) -> torch.Tensor:
        with self.parameters.outside_training():
            return batch_losses(self.model, batch)


class TargetLosses:
    """The mean loss of each target over the batches of all ranks."""

    def __init__(self, num_targets: int, group: DataParallelGroup) -> None:
        self.group = group
        self._sums = np.zeros((2, num_targets))

    def add(self, batch: Batch, losses: torch.Tensor) -> None:
        """Takes the per-sample losses (B,) of a batch; samples of sources are passed over."""
        mine = batch.of(Role.TARGET)
        np.add.at(self._sums[0], batch.index[mine], losses.double().cpu().numpy()[mine])
        np.add.at(self._sums[1], batch.index[mine], batch.sample_weights()[mine])

    def mean(self) -> np.ndarray:
        """Nats per token, (V,). Every rank of the group must call."""
        sums, counts = self.group.sum(self._sums)
        return sums / counts


def _check_finite(values: np.ndarray, names: list[str], number: int) -> None:
    for name, value in zip(names, values, strict=True):
        if not np.isfinite(value):
            raise NonFiniteError(
                f"outer step {number}: {name} is {value}; lower training.lr or raise "
                "training.lr_warmup_iters, and resume from the last checkpoint"
            )

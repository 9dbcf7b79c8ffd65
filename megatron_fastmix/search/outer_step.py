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
from megatron_fastmix.errors import ConfigError, NonFiniteError
from megatron_fastmix.hypergradient import (
    ESTIMATORS,
    Probe,
    Products,
    noise_to_signal,
    target_gradient,
)
from megatron_fastmix.hypergradient.one_pass import OnePass
from megatron_fastmix.hypergradient.own_slope import TOLERANCE, own_slope_error
from megatron_fastmix.hypergradient.products import SampleProducts
from megatron_fastmix.hypergradient.sites import check_supported
from megatron_fastmix.hypergradient.training_probe import FAINTEST, TrainingProbe
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.mixture.objective import TargetAggregation, regularizer_gradient
from megatron_fastmix.mixture.optimality import advantages
from megatron_fastmix.mixture.outer_optimizer import logit_gradient
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.parameters import Parameters, Vector
from megatron_fastmix.proxy.megatron_gpt import batch_losses
from megatron_fastmix.search.start_mixture import prior_weights


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
    """∂/∂z, (K,); that of a group's logit is the sum over its sources."""
    advantage: np.ndarray
    """A_k, (K,); NaN where the probe had no sample; see `mixture.optimality`."""
    advantage_standard_error: np.ndarray
    """(K,), over the probe's samples at this v."""
    group_seen: np.ndarray
    """Whether there was evidence for what has a logit, bool (G,)."""
    group_advantage: np.ndarray
    """A of what has a logit, (G,): the sources, or groups with fixed shares inside."""
    group_advantage_standard_error: np.ndarray
    """(G,)."""
    lr: float
    """Outer learning rate."""
    seconds: float
    """Wall time of `step` on this rank."""


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
        self.prior_weights = prior_weights(config, mixture.groups)
        self._begun: _Begun | None = None

    def check_estimator(self) -> None:
        """Holds `one_pass` against the target's own slope at the θ that this process begins with.

        Every rank must call. Raises `ConfigError` where it misses: the model then uses weights
        in a way that no hook sees.
        """
        name = self.config.hypergradient.estimator
        if name != "one_pass":
            return
        number, alpha = self.mixture.outer_steps, self.mixture.weights
        term = self.batches.objective(number, alpha, self.targets.weights)[0]
        v = target_gradient(self._losses, self.parameters, term)
        group = self.batches.group
        error = own_slope_error(ESTIMATORS[name], self._probe(()), term, v, group)
        error = float(self.tensor.of_first(np.array([error]))[0])
        self.parameters.release()
        if error > TOLERANCE:
            raise ConfigError(
                f"hypergradient.estimator: {name} misses the target's own slope by {error:.1%} on "
                "this model, of which it cannot see every use of a weight; choose per_source or "
                "finite_difference"
            )

    def agree(self) -> None:
        """Has every rank hold the first one's mixture and ω, bit for bit; see `Mixture.agree`.

        Every rank must call. Raises `RankDivergenceError` where the logits differ by more than
        rounding.
        """
        of_first = self.world.of_first
        self.world.check_close(self.mixture.logits, self.mixture.names, "the logits")
        self.mixture.agree(of_first)
        self.targets.load_state(of_first(self.targets.weights).tolist())

    def begin(self, step: int) -> TrainingProbe:
        """With `probe: training`, what is to watch optimizer step `step`, the next one, before
        `step` is called: v, and the products of sources that the step's batch is without, are those
        of the θ that it starts from. Every rank must call."""
        mixture, number = self.mixture, self.mixture.outer_steps
        alpha, loss_weights = mixture.weights, mixture.loss_weights
        target_losses = TargetLosses(len(self.config.targets), self.batches.group)
        vectors = list(self._target_gradients(number, alpha, target_losses))
        present = np.bincount(self.batches.sources_of(step), minlength=len(alpha)) > 0
        present &= loss_weights > FAINTEST
        batches = self.batches.probe(number, alpha, among=~present)
        probe = TrainingProbe(OnePass(self.model, self.parameters), vectors)
        self._begun = _Begun(
            target_losses=target_losses,
            probe=probe,
            loss_weights=loss_weights,
            # A batch holds a sample twice where the source has no more of them.
            distinct=np.where(
                present,
                self.batches.blend.epoch_sizes,
                self.batches.distinct_in_probe(number, alpha),
            ),
            apart=self._sample_products(batches, vectors) if batches else [],
        )
        # The training is to find the engine's view of θ as it left it.
        self.parameters.release()
        return probe

    def step(self, inner_lr: float) -> OuterResult:
        """One outer step at inner learning rate η, equal on all ranks.

        Every rank must call. Raises `NonFiniteError` (with the source's name) on NaN or Inf, before
        the logits move, and `RankDivergenceError` where the logits of ranks differ afterwards.
        """
        began = time.monotonic()
        config, mixture, number = self.config, self.mixture, self.mixture.outer_steps
        alpha, lr = mixture.weights, mixture.lr

        group = self.batches.group
        if self._begun is not None:
            target_losses, found = self._begun.target_losses, self._begun.products()
            distinct = self._begun.distinct
            self._begun = None  # lets go of v
        else:
            assert config.hypergradient.probe == "separate", "begin comes first"
            target_losses = TargetLosses(len(config.targets), group)
            vectors = self._target_gradients(number, alpha, target_losses)
            found = self._sample_products(self.batches.probe(number, alpha), vectors)
            distinct = self.batches.distinct_in_probe(number, alpha)
        means = [Products.mean_by_source(each, len(alpha), group, distinct) for each in found]
        # Each tensor-parallel rank has summed over a communicator of its own, whose order of
        # summation, and so the last bits, may be others.
        terms = [products.agreed(self.tensor) for products in means]
        losses = self.tensor.of_first(target_losses.mean())
        self._check_finite(losses, terms, number)

        grouping, counts, seen = mixture.grouping, terms[0].counts, terms[0].seen
        drawn = config.hypergradient.probe_samples is not None
        parts = grouping.parts(seen, counts if drawn else None)
        target_products, omega = None, self.targets.weights
        if config.estimates_per_target:
            target_products = np.stack([term.values for term in terms[: len(omega)]])
            # Found by iteration, whose last bits decide how many rounds it takes: see `agree`.
            omega = self.world.of_first(
                self.targets.choose(
                    np.stack([grouping.mean(parts, each) for each in target_products]),
                    mixture.logit_weights,
                    grouping.sums(mixture.history[0]),
                    grouping.seen(seen),
                )
            )
            # The β term follows those of the targets and has its factor already.
            factors = [*omega, *[1.0] * (len(terms) - len(omega))]
            terms = [term.scaled(factor) for term, factor in zip(terms, factors, strict=True)]
            together = Products.mean_by_source(
                SampleProducts.weighted_sum(found, factors), len(alpha), group, distinct
            )
            products = Products.total(terms, together.agreed(self.tensor).standard_error)
        else:
            (products,) = terms

        # FastMix, horizon n2 = 1: ∂ℓ/∂α_k = −η·⟨v, ∇L_k⟩, and the term on α itself, whose λ is that
        # of the peak of η: by a decayed η it would weigh more and more.
        pull = regularizer_gradient(
            alpha,
            config.objective.entropy_weight / config.training.lr,
            self.prior_weights,
        )
        gains = products.values - pull
        errors = products.pooled_error
        advantage, error = advantages(gains, errors, alpha, products.seen)
        slope = logit_gradient(-inner_lr * gains, alpha, products.seen)
        # What shares a logit moves by the share-weighted sum of its sources' products.
        group_gains = grouping.mean(parts, products.values) - grouping.mean(grouping.shares, pull)
        group_seen = grouping.seen(seen)
        group_error = grouping.mean_error(parts, products.values, errors, counts)
        group_advantage, group_error = advantages(
            group_gains, group_error, mixture.logit_weights, group_seen
        )
        mixture.update(-inner_lr * group_gains, group_seen, group_advantage)
        self.targets.update(losses)
        self.agree()
        return OuterResult(
            target_losses=losses,
            target_weights=omega,
            products=products,
            target_products=target_products,
            noise_to_signal=noise_to_signal(products, terms),
            gradient=slope,
            advantage=advantage,
            advantage_standard_error=error,
            group_seen=group_seen,
            group_advantage=group_advantage,
            group_advantage_standard_error=group_error,
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

    def _sample_products(
        self, batches: Sequence[Batch], vectors: Iterable[Vector]
    ) -> list[SampleProducts]:
        """⟨v, ∇ℓ_b⟩ of each v and each sample of `batches`."""
        return ESTIMATORS[self.config.hypergradient.estimator](self._probe(batches), vectors)

    def _probe(self, batches: Sequence[Batch]) -> Probe:
        return Probe(
            batches=batches,
            losses=self._losses,
            model=self.model,
            parameters=self.parameters,
            num_sources=len(self.config.sources),
            relative_step=self.config.hypergradient.relative_step,
        )

    def _check_finite(self, losses: np.ndarray, terms: Sequence[Products], number: int) -> None:
        _check_finite(losses, [f"target {t.name}: loss" for t in self.config.targets], number)
        for term in terms:
            names = [f"source {name}: ⟨v, ∇L⟩" for name in self.mixture.names]
            _check_finite(term.values, names, number)

    def _losses(self, batch: Batch) -> torch.Tensor:
        with self.parameters.outside_training():
            return batch_losses(self.model, batch)


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """An outer step whose probe is the optimizer step before it."""

    target_losses: TargetLosses
    probe: TrainingProbe
    loss_weights: np.ndarray
    """Of the optimizer step, (K,)."""
    distinct: np.ndarray
    """Distinct samples of each source at most, (K,)."""
    apart: list[SampleProducts]
    """For each v, of the sources without a sample in the training batch; empty without any."""

    def products(self) -> list[SampleProducts]:
        """For each v. Every rank must call, once, after the optimizer step."""
        found = self.probe.products(self.loss_weights)
        if not self.apart:
            return found
        return [SampleProducts.joined(pair) for pair in zip(found, self.apart, strict=True)]


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

"""What every estimator is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.parameters import Parameters, Vector


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B samples for one forward pass on one rank, in R rows of S tokens; B is the same on every
    rank. A row is a sample unless `segment` says otherwise."""

    tokens: torch.Tensor
    """(R, S) int64."""
    labels: torch.Tensor
    """(R, S) int64."""
    loss_mask: torch.Tensor
    """(R, S) float."""
    group: np.ndarray
    """(B,) index of each sample's source or target; −1 for padding, which counts nowhere."""
    segment: torch.Tensor | None = None
    """(R, S) the sample that each token belongs to, −1 for padding; None where rows are samples."""
    tokens_per_sample: torch.Tensor | None = None
    """(B,) by what the summed loss of a sample is divided: the mean number of answer tokens of a
    row of its source; None divides by the sample's own number of tokens in the loss."""

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return self.tokens.numel() if self.segment is None else int((self.segment >= 0).sum())

    def sample_weights(self) -> np.ndarray:
        """What each sample counts in a mean loss, float64 (B,): 1, or for answer-only rows their
        answer tokens over the mean, so that Σ losses / Σ weights is the loss per token."""
        if self.segment is None or self.tokens_per_sample is None:
            return np.ones(len(self.group))
        tokens = torch.zeros_like(self.tokens_per_sample).index_add(
            0, self.segment.clamp_min(0).flatten(), self.loss_mask.double().flatten()
        )
        return (tokens / self.tokens_per_sample).cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class OuterProblem:
    """One outer step's question: ⟨v, ∇L_k⟩ for all K sources at the current θ.

    Every rank holds as many batches as the others: forward passes are collective under ZeRO-3.
    """

    losses: Callable[[Batch], torch.Tensor]
    """Per-sample losses (B,) of the model at its current parameters, differentiable."""
    parameters: Parameters
    """θ."""
    objective: Sequence[tuple[Batch, torch.Tensor]]
    """Batches with per-sample weights (B,): v is the gradient of Σ weight·loss over all ranks."""
    probe: Sequence[Batch]
    """Batches in which every source is represented; their `group` is the source."""
    num_sources: int
    """K."""
    group: DataParallelGroup
    """The ranks over which batches are spread."""
    relative_step: float
    """r in ε = r·‖θ‖/‖v‖."""
    precondition: Callable[[Sequence[torch.nn.Parameter], Vector], None] | None = None
    """Divides v in place by the inner optimizer's preconditioner; None leaves it."""

    def objective_gradient(
        self, parameters: Parameters, on_losses: Callable[[Batch, torch.Tensor], None] | None = None
    ) -> Vector:
        """v, reduced over the ranks (a shard of it under ZeRO-3). Every rank must call.

        `on_losses` receives each objective batch with its per-sample losses.
        """
        v = parameters.zeros()
        for batch, weights in self.objective:
            losses = self.losses(batch)
            if on_losses is not None:
                on_losses(batch, losses.detach())
            parameters.accumulate_gradient((losses * weights).sum(), v)
        parameters.finish_gradient(v)
        if self.precondition is not None:
            self.precondition(parameters.parameters, v)
        return v


@dataclass(frozen=True, kw_only=True)
class Products:
    """The estimate of ⟨v, ∇L_k⟩, equal on all ranks; every array has shape (K,)."""

    values: np.ndarray
    """⟨v, ∇L_k⟩; 0 where the probe had no sample of the source."""
    counts: np.ndarray
    """Probe samples per source over all ranks."""
    standard_error: np.ndarray
    """Standard error of each value over its probe samples; NaN where it cannot be known."""

    @classmethod
    def total(cls, terms: Sequence[Products]) -> Products:
        """Of a sum of objectives, whose gradients v add up. Their errors are taken as independent,
        though they share a probe."""
        first, *others = terms
        if not others:
            return first
        return cls(
            values=np.sum([term.values for term in terms], axis=0),
            counts=first.counts,
            standard_error=np.sqrt(np.sum([term.standard_error**2 for term in terms], axis=0)),
        )

    def scaled(self, factor: float) -> Products:
        """Of an objective `factor` times as large."""
        return Products(
            values=factor * self.values,
            counts=self.counts,
            standard_error=factor * self.standard_error,
        )

    @property
    def seen(self) -> np.ndarray:
        """Sources with evidence, bool (K,)."""
        return self.counts > 0


def noise_to_signal(terms: Sequence[Products]) -> float | None:
    """Root mean square of the standard errors of a sum of `terms` over the spread of their values
    across sources: 0 is a sure estimate, 1 or more is noise. None where fewer than 2 sources have
    both.

    Spreads are added up term by term: targets that pull against each other leave a flat sum, which
    is no noise.
    """
    total = Products.total(terms)
    known = np.isfinite(total.standard_error) & total.seen
    if known.sum() < 2:
        return None
    spread = float(sum(term.values[known].std() for term in terms))
    error = float(np.sqrt(np.mean(total.standard_error[known] ** 2)))
    return error / spread if spread else float("inf")


OnLosses = Callable[[Batch, torch.Tensor], None]

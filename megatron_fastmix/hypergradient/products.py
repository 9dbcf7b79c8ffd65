"""What estimators return, and the estimate of ⟨v, ∇L_k⟩ that it is reduced to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_fastmix.batch.batch import Batch, Role
from megatron_fastmix.mixture.simplex import dot
from megatron_fastmix.parallel.groups import DataParallelGroup


@dataclass(frozen=True, kw_only=True)
class SampleProducts:
    """⟨v, ∇Σℓ_b⟩ over the samples b of each of N entries on this rank, for one v."""

    values: np.ndarray
    """(N,) float64: a sample's own product, or the sum over those of a source in a batch."""
    source: np.ndarray
    """(N,) int."""
    samples: np.ndarray
    """(N,) float: samples of each entry."""

    @classmethod
    def weighted_sum(
        cls, terms: Sequence[SampleProducts], factors: Sequence[float]
    ) -> SampleProducts:
        """Of Σ factor·v, from each v's over the same samples."""
        first = terms[0]
        pairs = zip(factors, terms, strict=True)
        return cls(
            values=np.sum([factor * term.values for factor, term in pairs], axis=0),
            source=first.source,
            samples=first.samples,
        )

    @classmethod
    def joined(cls, parts: Sequence[SampleProducts]) -> SampleProducts:
        """Of several probes, for one v."""
        return cls(
            values=np.concatenate([part.values for part in parts]),
            source=np.concatenate([part.source for part in parts]),
            samples=np.concatenate([part.samples for part in parts]),
        )

    @classmethod
    def of_batches(cls, batches: Sequence[Batch], values: Sequence[np.ndarray]) -> SampleProducts:
        """From the product of every sample (B,) of each batch; padding is left out."""
        real = [batch.of(Role.SOURCE) for batch in batches]
        kept = [found[mine] for found, mine in zip(values, real, strict=True)]
        source = [batch.index[mine] for batch, mine in zip(batches, real, strict=True)]
        return cls(
            values=np.concatenate(kept),
            source=np.concatenate(source),
            samples=np.ones(sum(map(len, kept))),
        )


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
    def mean_by_source(
        cls,
        found: SampleProducts,
        num_sources: int,
        group: DataParallelGroup,
        distinct: np.ndarray | None = None,
    ) -> Products:
        """Means over the samples of all ranks. Every rank of `group` must call.

        `distinct` are the distinct samples of each source over all ranks, (K,): a source smaller
        than its probe is read more than once, and repeated samples are no further evidence. None
        takes all for distinct.

        The standard error is that of independent entries: with entry i the sum s_i over n_i of N
        samples, its square is [Σ s_i²/n_i / N − (Σ s_i / N)²] / (entries − 1), where entries
        beyond the distinct samples do not count.
        """
        sums = np.zeros((4, num_sources))
        entries = (
            found.values,
            found.values**2 / np.maximum(found.samples, 1),
            found.samples,
            (found.samples > 0).astype(float),
        )
        for row, values in zip(sums, entries, strict=True):
            np.add.at(row, found.source, values)
        total, squares, counts, parts = group.sum(sums)
        if distinct is not None:
            parts = np.minimum(parts, distinct)
        samples = np.maximum(counts, 1)
        mean = total / samples
        variance = np.maximum(squares / samples - mean**2, 0) / np.maximum(parts - 1, 1)
        error = np.where(parts > 1, np.sqrt(variance), np.nan)
        return cls(values=mean, counts=counts, standard_error=error)

    @classmethod
    def total(cls, terms: Sequence[Products], standard_error: np.ndarray) -> Products:
        """Of a sum of objectives, whose gradients v add up. They share a probe, so that
        `standard_error`, (K,), is that of the summed samples (`SampleProducts.weighted_sum`)."""
        return cls(
            values=np.sum([term.values for term in terms], axis=0),
            counts=terms[0].counts,
            standard_error=standard_error,
        )

    def agreed(self, tensor_group: DataParallelGroup) -> Products:
        """Those of the first tensor-parallel rank. Every rank of the group must call."""
        together = np.stack([self.values, self.counts, self.standard_error])
        values, counts, error = tensor_group.of_first(together)
        return Products(values=values, counts=counts, standard_error=error)

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

    @property
    def measured(self) -> np.ndarray:
        """`values`, (K,), NaN without evidence."""
        return np.where(self.seen, self.values, np.nan)

    @property
    def pooled_error(self) -> np.ndarray:
        """`standard_error`, (K,), where a source of one distinct sample has the standard deviation
        of the samples of all others around their sources' means; NaN where no source has two."""
        known = np.isfinite(self.standard_error)
        freedom = np.where(known, self.counts - 1, 0.0)
        variance = np.where(known, self.counts * self.standard_error**2, 0.0)  # of a sample
        if not freedom.sum() > 0:
            return self.standard_error
        pooled = np.sqrt(dot(freedom, variance) / freedom.sum())
        return np.where(self.seen & ~known, pooled, self.standard_error)


def noise_to_signal(total: Products, terms: Sequence[Products]) -> float | None:
    """Root mean square of the standard errors of `total`, a sum of `terms`, over the spread of
    their values across sources: 0 is a sure estimate, 1 or more is noise. None where fewer than 2
    sources have both.

    Spreads are added up term by term: targets that pull against each other leave a flat sum, which
    is no noise.
    """
    known = np.isfinite(total.standard_error) & total.seen
    if known.sum() < 2:
        return None
    spread = float(sum(term.values[known].std() for term in terms))
    error = float(np.sqrt(np.mean(total.standard_error[known] ** 2)))
    return error / spread if spread else float("inf")

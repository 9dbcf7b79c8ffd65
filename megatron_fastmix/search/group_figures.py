"""What is logged of the groups of sources: weights, advantages and losses, pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_fastmix.hypergradient import Products
from megatron_fastmix.mixture.grouping import Grouping
from megatron_fastmix.mixture.optimality import advantages


@dataclass(frozen=True, kw_only=True)
class GroupEvidence:
    """How much each group gains in one outer step."""

    advantage: np.ndarray
    """A_g = Σ_{k in g} α_k·A_k / Σ_{k in g} α_k with the weights before the step, over the sources
    with evidence, (G,); NaN without any."""
    standard_error: np.ndarray
    """Over the probe's samples at this v, (G,)."""


def group_evidence(
    groups: Grouping, before: np.ndarray, products: Products, advantage: np.ndarray
) -> GroupEvidence:
    """From the weights `before` the step, the products and the advantages of the sources, (K,)."""
    seen = products.seen
    weights = np.where(seen, before, 0.0)
    totals = groups.sums(weights)
    parts = np.divide(
        weights,
        totals[groups.members],
        out=np.zeros_like(weights),
        where=totals[groups.members] > 0,
    )
    known = totals > 0
    mean = np.where(known, groups.mean(parts, np.nan_to_num(advantage)), np.nan)
    errors = groups.mean_error(parts, products.values, products.pooled_error, products.counts)
    _, error = advantages(np.zeros(len(totals)), errors, totals, known)
    return GroupEvidence(advantage=mean, standard_error=error)


def group_losses(groups: Grouping, losses: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean loss of the samples of each group, (G,), NaN without any, from the mean of each source
    and how many it is of, (K,) each."""
    total = groups.sums(counts)
    summed = groups.sums(np.where(counts > 0, np.nan_to_num(losses) * counts, 0.0))
    return np.divide(summed, total, out=np.full_like(summed, np.nan), where=total > 0)

"""Points of the probability simplex, float64 of shape (K,)."""

from __future__ import annotations

import numpy as np


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ a·b over the last axis, the same to the last bit in every process.

    Not so with @: BLAS may round by where its arrays lie in memory; ranks would disagree, and a
    resumed search would differ from one that was not interrupted.
    """
    return (a * b).sum(axis=-1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """α from z, both of shape (K,)."""
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def safe_log(weights: np.ndarray) -> np.ndarray:
    """log α, finite also where α has underflowed to 0."""
    return np.log(np.maximum(weights, np.finfo(np.float64).tiny))


def project_onto_bounds(weights: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The mixture within the bounds that is nearest to `weights` in KL divergence, shape (K,).

    It is clip(c·weights, lower, upper) with the one c that makes the sum 1, so sources at no bound
    keep their proportions. Weights within the bounds come back bit for bit. The bounds must admit
    a mixture: Σ lower ≤ 1 ≤ Σ upper, lower ≤ upper, upper > 0.
    """
    if np.all((weights >= lower) & (weights <= upper)):
        return weights
    return scale_within(weights, lower, upper, 1.0)


def project_onto_nested_bounds(
    weights: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    members: np.ndarray,
    group_lower: np.ndarray,
    group_upper: np.ndarray,
) -> np.ndarray:
    """`project_onto_bounds` where also the sum of each group g of sources lies within
    `group_lower` and `group_upper`, (G,); `members` is the group of each source, int (K,).

    Group sums are Σ_g(c) = clip(Σ_{k in g} clip(c·α_k, lower, upper), group bounds) with the one c
    that makes them add up to 1, and inside a group clip(c_g·α_k, …) has that sum: the conditions of
    Karush, Kuhn and Tucker for bounds that nest. The bounds must admit a mixture.
    """
    count = len(group_lower)
    sums = np.bincount(members, weights, count)
    inside = np.all((weights >= lower) & (weights <= upper))
    if inside and np.all((sums >= group_lower) & (sums <= group_upper)):
        return weights
    positive = np.maximum(weights, np.finfo(np.float64).tiny)

    def group_sums(log_c: float) -> np.ndarray:
        each = np.clip(np.exp(log_c) * positive, lower, upper)
        return np.clip(np.bincount(members, each, count), group_lower, group_upper)

    low, high = -750.0, 700.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if group_sums(middle).sum() < 1 else (low, middle)
    target = group_sums(high)
    projected = np.empty_like(positive)
    for g in range(count):
        mine = members == g
        projected[mine] = scale_within(positive[mine], lower[mine], upper[mine], target[g])
    return projected


def scale_within(
    weights: np.ndarray, lower: np.ndarray, upper: np.ndarray, sum_: float
) -> np.ndarray:
    """clip(c·weights, lower, upper) with the one c that makes the sum `sum_`, which the bounds must
    admit."""
    positive = np.maximum(weights, np.finfo(np.float64).tiny)
    # The sum grows with c, and is constant outside of these ends.
    low, high = np.log(np.maximum(lower, 1e-300) / positive).min(), np.log(upper / positive).max()
    for _ in range(200):
        middle = 0.5 * (low + high)
        total = np.clip(np.exp(middle) * positive, lower, upper).sum()
        low, high = (middle, high) if total < sum_ else (low, middle)
    scaled = np.exp(high) * positive
    free = (scaled > lower) & (scaled < upper)
    projected = np.clip(scaled, lower, upper)
    if free.any():  # the last digits that the bisection leaves
        projected[free] *= (sum_ - projected[~free].sum()) / projected[free].sum()
    return np.clip(projected, lower, upper)

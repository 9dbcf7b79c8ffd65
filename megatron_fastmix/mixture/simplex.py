"""Points of the probability simplex, float64 of shape (K,)."""

from __future__ import annotations

import numpy as np


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
    positive = np.maximum(weights, np.finfo(np.float64).tiny)
    # The sum grows with c, and is constant outside of these ends.
    low, high = np.log(np.maximum(lower, 1e-300) / positive).min(), np.log(upper / positive).max()
    for _ in range(200):
        middle = 0.5 * (low + high)
        total = np.clip(np.exp(middle) * positive, lower, upper).sum()
        low, high = (middle, high) if total < 1 else (low, middle)
    scaled = np.exp(high) * positive
    free = (scaled > lower) & (scaled < upper)
    projected = np.clip(scaled, lower, upper)
    if free.any():  # the last digits that the bisection leaves
        projected[free] *= (1 - projected[~free].sum()) / projected[free].sum()
    return np.clip(projected, lower, upper)

"""The term of the objective that acts on α itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_fastmix.mixture.simplex import safe_log


def regularizer_gradient(
    weights: np.ndarray, entropy_weight: float, prior: Sequence[float] | None = None
) -> np.ndarray:
    """∂/∂α_k of λ·Σ α_k log α_k, or with a prior α₀ of λ·KL(α‖α₀), shape (K,).

    Args:
        weights: α, shape (K,).
        entropy_weight: λ; positive values raise the entropy, or pull α to the prior.
        prior: positive shares of any sum, (K,).
    """
    if prior is None:
        return entropy_weight * (safe_log(weights) + 1)
    shares = np.asarray(prior, dtype=np.float64)
    return entropy_weight * (safe_log(weights) - np.log(shares / shares.sum()) + 1)

"""What weights are: finite, not negative, not all zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def normalized(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """`weights` (K,) as float64 shares that sum to 1.

    Raises `ValueError` unless all are finite and 0 or more, and one is above 0.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if shares.ndim != 1 or not np.all(np.isfinite(shares) & (shares >= 0)) or not shares.any():
        found = shares.tolist() if shares.size <= 20 else f"{shares.size} numbers"
        raise ValueError(f"weights: found {found}; use finite shares ≥ 0 that are not all 0")
    # Through the largest, so that neither tiny nor huge weights leave the range of float64.
    shares = shares / shares.max()
    return shares / shares.sum()

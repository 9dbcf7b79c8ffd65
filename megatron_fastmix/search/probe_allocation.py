"""How many probe samples each source gets in an outer step."""

from __future__ import annotations

import numpy as np

FEWEST = 2
"""Samples of every source, from which a standard error can be had."""


def allocate(weights: np.ndarray, per_source: int, allocation: str) -> np.ndarray:
    """Samples of each source, int (K,), summing to K·`per_source`; `weights` is α (K,).

    `even` gives each source `per_source`. `weighted` gives each 2 and shares the others out by α:
    source k's noise enters ∂ℓ/∂z through α_k·h_k, and Σ α_k²·σ²/n_k is least for n_k ∝ α_k (Neyman,
    1934).
    """
    count = len(weights)
    if allocation == "even" or per_source <= FEWEST:
        return np.full(count, per_source)
    free = count * (per_source - FEWEST)
    shares = free * weights / weights.sum()
    counts = np.floor(shares).astype(int)
    # Largest remainders; ties go to the first source.
    first = np.argsort(counts - shares, kind="stable")[: free - counts.sum()]
    counts[first] += 1
    return counts + FEWEST

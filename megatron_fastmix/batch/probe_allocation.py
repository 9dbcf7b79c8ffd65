"""How many probe samples each source gets in an outer step."""

from __future__ import annotations

import numpy as np

FEWEST = 2
"""Samples of every source: as few as give `finite_difference` a standard error."""


def allocate(weights: np.ndarray, per_source: int, allocation: str) -> np.ndarray:
    """Samples of each source, int (K,), summing to K·`per_source`; `weights` is α (K,).

    `even` gives each source `per_source`. `weighted` gives each 2 and shares the others out by α.
    A step along h moves α_j by α_j·(h_j − Σ α_i h_i), in which noise of variance σ²/n_k in h_k has
    the squared size α_k²·σ²/n_k·[(1 − α_k)² + Σ_{j≠k} α_j²]. While no source dominates, the bracket
    is about the same for all, and the sum is least for n_k ∝ α_k (Neyman, 1934); with one source
    near 1, or two sources, `even` is the better one.
    """
    count = len(weights)
    if allocation == "even":
        return np.full(count, per_source)
    free = count * (per_source - FEWEST)
    shares = free * weights / weights.sum()
    counts = np.floor(shares).astype(int)
    # Largest remainders; ties go to the first source.
    first = np.argsort(counts - shares, kind="stable")[: free - counts.sum()]
    counts[first] += 1
    return counts + FEWEST

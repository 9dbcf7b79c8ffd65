"""Learning rates over a run, of the inner and of the outer loop."""

from __future__ import annotations

import math


def scheduled_rate(
    step: int, *, peak: float, final: float, warmup: int, total: int, style: str
) -> float:
    """The rate of step `step` (from 0): linear warm-up to `peak`, then decay to `final` at `total`.

    Args:
        style: `constant`, `linear` or `cosine`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    left = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }[style]
    return final + (peak - final) * left

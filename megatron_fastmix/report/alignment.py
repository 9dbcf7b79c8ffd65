"""How much more than the present mixture each source lowers the target loss.

The products ⟨v, ∇L_k⟩ rise and fall together; what moves the weights is how they differ.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from megatron_fastmix.report.run_record import Points, RunRecord, is_number

ALIGNMENT_PART = 10
"""Alignments are averaged over this part of the run: one estimate is mostly noise."""


def smooth_advantage(run: RunRecord, name: str, target: str | None = None) -> Points:
    """`advantage`, averaged over the last part of the run at each step."""
    return smooth(advantage(run, name, target), run)


def advantage(run: RunRecord, name: str, target: str | None = None) -> Points:
    """⟨v, ∇L_k⟩ − Σ_i α_i ⟨v, ∇L_i⟩ at each outer step: its sign is that of the weight's change."""
    averages = average_product(run, target)
    return [
        (line["step"], _products(line, target)[name] - average)
        for line, average in zip(run.outer, averages, strict=True)
        if average is not None
    ]


@lru_cache(maxsize=32)
def average_product(run: RunRecord, target: str | None) -> list[float | None]:
    """Σ_i α_i ⟨v, ∇L_i⟩ at each outer step; None where not every product is known."""
    averages: list[float | None] = []
    weights = run.initial
    for line in run.outer:
        products = _products(line, target)
        known = all(is_number(products.get(name)) for name in weights)
        averages.append(math.fsum(weights[n] * products[n] for n in weights) if known else None)
        weights = line["weights"]  # those after the step
    return averages


def _products(line: dict[str, Any], target: str | None) -> dict[str, float]:
    found = line.get("products")
    if target is not None:
        found = (line.get("target_products") or {}).get(target)
    return found if isinstance(found, dict) else {}


def smooth(points: Points, run: RunRecord) -> Points:
    """The mean of each point and those before it, over a part of the run."""
    width = max(1, len(run.outer) // ALIGNMENT_PART)
    sums = np.concatenate([[0.0], np.cumsum([value for _, value in points])])
    return [
        (step, float(sums[i + 1] - sums[max(0, i + 1 - width)]) / min(width, i + 1))
        for i, (step, _) in enumerate(points)
    ]

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
    """⟨v, ∇L_k⟩ − Σ_i α_i ⟨v, ∇L_i⟩ at each outer step: its sign is that of the weight's change.

    A step without evidence for the source has no point.
    """
    found = []
    for line, average in zip(run.outer, average_product(run, target), strict=True):
        product = _products(line, target).get(name)
        if average is not None and is_number(product):
            found.append((line["step"], product - average))
    return found


@lru_cache(maxsize=32)
def average_product(run: RunRecord, target: str | None) -> list[float | None]:
    """Σ_i α_i ⟨v, ∇L_i⟩ / Σ_i α_i at each outer step, over the sources with evidence; None without
    any."""
    averages: list[float | None] = []
    weights = run.initial
    for line in run.outer:
        products = _products(line, target)
        known = [name for name in weights if is_number(products.get(name))]
        total = math.fsum(weights[name] for name in known)
        summed = math.fsum(weights[name] * products[name] for name in known)
        averages.append(summed / total if total > 0 else None)
        weights = line["weights"]  # those after the step
    return averages


def _products(line: dict[str, Any], target: str | None) -> dict[str, Any]:
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

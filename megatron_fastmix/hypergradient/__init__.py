"""Estimators of ⟨v, ∇L_k⟩: one file each, one signature, one registry."""

from __future__ import annotations

from collections.abc import Callable

from megatron_fastmix.hypergradient.finite_difference import finite_difference
from megatron_fastmix.hypergradient.last_layer import last_layer
from megatron_fastmix.hypergradient.per_source import per_source
from megatron_fastmix.hypergradient.problem import (
    Batch,
    OnLosses,
    OuterProblem,
    Products,
    noise_to_signal,
)

Estimator = Callable[[OuterProblem, OnLosses | None], Products]

# `HypergradientConfig.estimator` names the same: a wrong name is refused before torch loads.
ESTIMATORS: dict[str, Estimator] = {
    "finite_difference": finite_difference,
    "per_source": per_source,
    "last_layer": last_layer,
}

__all__ = ["ESTIMATORS", "Batch", "Estimator", "OuterProblem", "Products", "noise_to_signal"]

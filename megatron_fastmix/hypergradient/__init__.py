"""Estimators of ⟨v, ∇L_k⟩: one file each, one signature, one registry."""

from __future__ import annotations

from collections.abc import Callable

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.hypergradient.finite_difference import finite_difference
from megatron_fastmix.hypergradient.last_layer import last_layer
from megatron_fastmix.hypergradient.per_source import per_source
from megatron_fastmix.hypergradient.problem import (
    Batch,
    OnLosses,
    OuterProblem,
    Products,
)

Estimator = Callable[[OuterProblem, OnLosses | None], Products]

ESTIMATORS: dict[str, Estimator] = {
    "finite_difference": finite_difference,
    "per_source": per_source,
    "last_layer": last_layer,
}

__all__ = ["ESTIMATORS", "Batch", "Estimator", "OuterProblem", "Products", "find_estimator"]


def find_estimator(name: str) -> Estimator:
    """The estimator of that name. Raises `ConfigError` that lists the valid ones."""
    if name not in ESTIMATORS:
        raise ConfigError(
            f"hypergradient.estimator: found {name!r}; choose one of {', '.join(ESTIMATORS)}"
        )
    return ESTIMATORS[name]

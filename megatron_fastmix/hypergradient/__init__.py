"""Estimators of ⟨v, ∇L_k⟩: one file each, one signature, one registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from megatron_fastmix.hypergradient.finite_difference import finite_difference
from megatron_fastmix.hypergradient.last_layer import last_layer
from megatron_fastmix.hypergradient.one_pass import one_pass
from megatron_fastmix.hypergradient.per_source import per_source
from megatron_fastmix.hypergradient.probe import Probe
from megatron_fastmix.hypergradient.products import Products, SampleProducts, noise_to_signal
from megatron_fastmix.hypergradient.target_gradient import target_gradient
from megatron_fastmix.parallel.parameters import Vector

Estimator = Callable[[Probe, Iterable[Vector]], list[SampleProducts]]
"""The products of each v with the gradients of the probe's samples. A v may be lost by it: take
them from a generator where one at a time is to be in memory. Every rank must call."""

# `HypergradientConfig.estimator` names the same: a wrong name is refused before torch loads.
ESTIMATORS: dict[str, Estimator] = {
    "one_pass": one_pass,
    "finite_difference": finite_difference,
    "per_source": per_source,
    "last_layer": last_layer,
}

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Probe",
    "Products",
    "SampleProducts",
    "noise_to_signal",
    "target_gradient",
]

"""All K inner products from two forward passes: the cost does not depend on K."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from megatron_fastmix.hypergradient.probe import Probe
from megatron_fastmix.hypergradient.products import SampleProducts
from megatron_fastmix.parallel.parameters import Vector


def finite_difference(probe: Probe, vectors: Iterable[Vector]) -> list[SampleProducts]:
    """⟨v, ∇ℓ_b⟩ = [ℓ_b(θ + εv) − ℓ_b(θ − εv)] / 2ε with ε = r·‖θ‖/‖v‖, over all parameters.

    Every rank must call.
    """
    return [_along(probe, v) for v in vectors]


def _along(probe: Probe, v: Vector) -> SampleProducts:
    parameters = probe.parameters
    norm = parameters.norm(v)
    if norm == 0 or not np.isfinite(norm):
        # Zero: no direction to differ along. NaN or Inf: the caller reports the products.
        epsilon = float("nan") if norm else 1.0
    else:
        epsilon = probe.relative_step * parameters.norm(parameters.local()) / norm
    with torch.no_grad(), parameters.perturbed_both_ways(v, epsilon) as mirror:
        ahead = [probe.losses(batch) for batch in probe.batches]
        mirror()
        behind = [probe.losses(batch) for batch in probe.batches]
    slopes = [
        ((high - low) / (2 * epsilon)).cpu().numpy()
        for high, low in zip(ahead, behind, strict=True)
    ]
    return SampleProducts.of_batches(probe.batches, slopes)

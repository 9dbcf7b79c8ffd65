"""Inner products over the output layer alone, as the published experiments compute them."""

from __future__ import annotations

from collections.abc import Iterable

from megatron_fastmix.hypergradient.per_source import inner_products
from megatron_fastmix.hypergradient.probe import Probe
from megatron_fastmix.hypergradient.products import SampleProducts
from megatron_fastmix.parallel.parameters import Vector


def last_layer(probe: Probe, vectors: Iterable[Vector]) -> list[SampleProducts]:
    """⟨v, ∇L_k⟩ over the parameters that are marked `is_output_layer`. Every rank must call."""
    kept = [getattr(p, "is_output_layer", False) for p in probe.parameters.parameters]
    assert any(kept), "no parameter is marked as the output layer"
    output = probe.parameters.subset(lambda p: getattr(p, "is_output_layer", False))
    return [
        inner_products(probe, output, [part for part, keep in zip(v, kept, strict=True) if keep])
        for v in vectors
    ]

"""Exact inner products: one backward pass per source. The reference that tests compare against."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from megatron_fastmix.batch.batch import Batch, Role
from megatron_fastmix.hypergradient.probe import Probe
from megatron_fastmix.hypergradient.products import SampleProducts
from megatron_fastmix.parallel.parameters import Parameters, Vector


def per_source(probe: Probe, vectors: Iterable[Vector]) -> list[SampleProducts]:
    """⟨v, ∇L_k⟩ by automatic differentiation, over all parameters. Every rank must call."""
    return [inner_products(probe, probe.parameters, v) for v in vectors]


def inner_products(probe: Probe, parameters: Parameters, v: Vector) -> SampleProducts:
    """⟨v, ∇L_k⟩ over `parameters`: K backward passes per probe batch. Every rank must call.

    Under ZeRO-3 an entry is of all ranks' samples in one batch each: with one batch a rank there is
    one a source, and no standard error.
    """
    sources = np.arange(probe.num_sources)
    masks = [
        batch.of(Role.SOURCE) & (batch.index == sources[:, None]) for batch in probe.batches
    ]  # (K, B) each
    values = np.array(
        [
            # Also without a sample of it: under ZeRO-3 the pass is collective.
            [_product(probe, parameters, v, batch, mine) for mine in mask]
            for batch, mask in zip(probe.batches, masks, strict=True)
        ]
    )
    parameters.release()
    samples = np.array([mask.sum(axis=1) for mask in masks], dtype=float)
    if parameters.tensor_group is not None:
        values = parameters.tensor_group.sum(values)
    if parameters.are_sharded:
        # An entry is then this rank's shard of the product over the samples of all ranks.
        values, samples = parameters.group.sum(values), parameters.group.sum(samples)
        if parameters.group.rank:
            values, samples = np.zeros_like(values), np.zeros_like(samples)
    return SampleProducts(
        values=values.ravel(), source=np.tile(sources, len(masks)), samples=samples.ravel()
    )


def _product(
    probe: Probe, parameters: Parameters, v: Vector, batch: Batch, mine: np.ndarray
) -> float:
    """⟨v, ∇Σℓ_b⟩ over the samples `mine`, bool (B,), of a batch."""
    received: list[torch.Tensor] = []
    parameters.each_gradient(
        probe.losses(batch)[torch.from_numpy(mine)].sum(),
        lambda i, gradient: received.append(parameters.dot(i, gradient, v[i])),
    )
    return float(torch.stack(received).sum())

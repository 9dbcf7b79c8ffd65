"""A check of an estimator on the model that it is used with, at the cost of one small probe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from megatron_fastmix.batch.batch import Batch, Role
from megatron_fastmix.hypergradient.probe import Probe
from megatron_fastmix.hypergradient.products import SampleProducts
from megatron_fastmix.mixture.simplex import dot
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.parameters import Vector

TOLERANCE = 0.05
"""Of bf16's rounding over a whole model there is 0.01 at most; a module whose weights are used
behind the estimator's back is beyond this unless its part in v is small."""


def own_slope_error(
    estimator: Callable[[Probe, Iterable[Vector]], list[SampleProducts]],
    probe: Probe,
    objective: Sequence[tuple[Batch, torch.Tensor]],
    v: Vector,
    group: DataParallelGroup,
) -> float:
    """|Σ_b w_b·⟨v, ∇ℓ_b⟩ / ‖v‖² − 1| over the samples b of `objective`, whose gradient v is: its
    slope along v is ‖v‖², so that an exact estimator gives 0. NaN where v is 0 or not finite.

    Every rank must call; v is lost. `objective` is as for `target_gradient`, `probe` says with what
    model; `estimator` must give the product of every single sample.
    """
    batches = [
        replace(
            batch,
            role=np.full(batch.num_samples, Role.SOURCE),
            index=np.zeros(len(batch.index), int),
        )
        for batch, _ in objective
    ]
    squared = probe.parameters.norm(v) ** 2  # an estimator may take the memory of v
    (found,) = estimator(replace(probe, batches=batches), [v])
    weights = torch.cat([weights for _, weights in objective]).double().cpu().numpy()
    slope = float(group.sum(np.array([dot(found.values, weights)]))[0])
    return abs(slope / squared - 1) if squared and np.isfinite(squared) else float("nan")

"""v, the gradient of what the mixture is to lower."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.parallel.parameters import Parameters, Vector

Losses = Callable[[Batch], torch.Tensor]
OnLosses = Callable[[Batch, torch.Tensor], None]
Precondition = Callable[[Sequence[torch.nn.Parameter], Vector], None]


def target_gradient(
    losses: Losses,
    parameters: Parameters,
    objective: Sequence[tuple[Batch, torch.Tensor]],
    *,
    on_losses: OnLosses = lambda batch, losses: None,
    precondition: Precondition | None = None,
) -> Vector:
    """v = ∇ Σ weight·loss over all ranks, fp32, reduced (a shard of it under ZeRO-3).

    Every rank must call, with as many batches as the others.

    Args:
        losses: per-sample losses (B,) of a batch at the current θ, differentiable.
        objective: batches with per-sample weights (B,).
        on_losses: receives each batch with its per-sample losses.
        precondition: divides v in place by the inner optimizer's preconditioner; None leaves it.
    """
    v = parameters.zeros()
    for batch, weights in objective:
        found = losses(batch)
        on_losses(batch, found.detach())
        parameters.accumulate_gradient((found * weights).sum(), v)
    parameters.finish_gradient(v)
    if precondition is not None:
        precondition(parameters.parameters, v)
    return v

"""What every estimator is given besides v."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.parallel.parameters import Parameters


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The samples whose gradients are multiplied by v, at the current θ.

    Every rank holds as many batches as the others: forward passes are collective under ZeRO-3.
    """

    batches: Sequence[Batch]
    """Samples of every source."""
    losses: Callable[[Batch], torch.Tensor]
    """Per-sample losses (B,) of the model at its current parameters, differentiable."""
    model: torch.nn.Module
    """What `losses` calls."""
    parameters: Parameters
    """θ, the trained parameters of `model`."""
    num_sources: int
    """K."""
    relative_step: float
    """r in ε = r·‖θ‖/‖v‖ of `finite_difference`."""

"""One optimizer step of the proxy under the current mixture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.proxy.megatron_gpt import batch_losses


def inner_step(
    engine: Any, batches: Batches, step: int, loss_weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Trains on global batch `step`: mean over samples of loss_weights[source]·loss.

    Args:
        loss_weights: `Mixture.loss_weights`, shape (K,).

    Returns this rank's unweighted losses by source, as sums (K,) and counts (K,) of samples. Every
    rank must call: the engine reduces gradients.
    """
    sums, counts = np.zeros_like(loss_weights), np.zeros_like(loss_weights)
    for micro_step in range(batches.accumulation_steps):
        batch = batches.training(step, micro_step)
        losses = batch_losses(engine, batch)
        weights = torch.as_tensor(loss_weights[batch.index], device=losses.device)
        engine.backward((losses * weights).mean().float())
        engine.step()
        np.add.at(sums, batch.index, losses.detach().cpu().numpy())
        np.add.at(counts, batch.index, batch.sample_weights())
    return sums, counts

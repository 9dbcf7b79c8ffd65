"""One optimizer step of the proxy under the current mixture."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from megatron_fastmix.batch.batch import send
from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.hypergradient.training_probe import TrainingProbe
from megatron_fastmix.proxy.megatron_gpt import batch_losses


def inner_step(
    engine: Any,
    batches: Batches,
    step: int,
    loss_weights: np.ndarray,
    probe: TrainingProbe | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Trains on global batch `step`: mean over samples of loss_weights[source]·loss.

    Args:
        loss_weights: `Mixture.loss_weights`, shape (K,).
        probe: watches the passes, which stay what they are without it.

    Returns this rank's unweighted losses by source, as sums (K,) and counts (K,) of samples. Every
    rank must call: the engine reduces gradients.
    """
    sums, counts = np.zeros_like(loss_weights), np.zeros_like(loss_weights)
    seen: list[tuple[np.ndarray, torch.Tensor]] = []
    for micro_step in range(batches.accumulation_steps):
        batch = batches.training(step, micro_step)
        with probe.watching(batch) if probe else nullcontext():
            losses = batch_losses(engine, batch)
        if probe:
            probe.losses(losses)
        weights = send(torch.from_numpy(loss_weights[batch.index]), losses.device)
        engine.backward((losses * weights).mean().float())
        engine.step()
        seen.append((batch.index, losses.detach()))
        np.add.at(counts, batch.index, batch.sample_weights())
    # The one read of the step: the host has handed the accelerator all of it by now.
    on_host = torch.cat([losses for _, losses in seen]).cpu().numpy()
    for (index, _), losses in zip(seen, np.split(on_host, len(seen)), strict=True):
        np.add.at(sums, index, losses)
    return sums, counts

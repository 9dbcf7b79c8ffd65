"""Losses by source on a GPU never make the training step wait for the device."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from megatron_fastmix.megatron.source_losses import Layout, SourceLosses

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SEQ_LENGTH = 4096


class Alternating:
    """Draws of two sources in turn."""

    names = ("even", "odd")

    def source_of(self, index: int) -> int:
        return index % 2

    def mask_factor(self, index: int) -> float:
        return 1.0


def mean_loss(mask, output):
    return (output * mask).sum() / mask.sum()


def test_summing_does_not_synchronise():
    losses = SourceLosses(Alternating(), Layout(micro_batch_size=4, rank=0, size=1))
    output = torch.rand(4, SEQ_LENGTH, device="cuda", requires_grad=True)
    mask = torch.ones(4, SEQ_LENGTH, device="cuda")
    watched = losses.watch(partial(mean_loss, mask))
    losses.begin(0)
    watched(output)  # the first one allocates
    losses.begin(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            watched(output)
        losses.end()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    sums = losses.take().cpu()
    rows = output.detach().double().sum(1).cpu()
    expected = 3 * torch.stack([rows[0::2].sum(), rows[1::2].sum()])
    assert torch.allclose(sums[0], expected, rtol=1e-5)
    assert sums[1].tolist() == [6 * SEQ_LENGTH] * 2

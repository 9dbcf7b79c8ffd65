"""Losses by source on the last pipeline stage, from draws that are known without the batch.

Sample i of a run is draw i of its blend, a pure function, and Megatron's sampler gives micro-batch
m of data-parallel rank r of N the samples `first + (m·N + r)·B` to `+ B`. So which source each row
of a micro-batch comes from is known from the number of consumed samples, though Megatron's batches
carry no `dataset_id`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How global batches are dealt to ranks."""

    micro_batch_size: int
    rank: int
    """Data-parallel rank, without context parallelism."""
    size: int
    """Data-parallel size, likewise."""

    def samples(self, first: int, micro_batch: int) -> range:
        """The samples of a micro-batch of the step whose global batch begins at `first`."""
        start = first + (micro_batch * self.size + self.rank) * self.micro_batch_size
        return range(start, start + self.micro_batch_size)


class SourceLosses:
    """Sums of token losses and of tokens, by source, since the last `take`.

    Works on the loss's device and never waits for it.
    """

    def __init__(self, blend: FastMixBlendedDataset, layout: Layout) -> None:
        self.blend = blend
        self.layout = layout
        self.problem: str | None = None
        """Why losses cannot be told; the sums then stay as they are."""
        self._sums: torch.Tensor | None = None
        self._step: torch.Tensor | None = None
        self._first = self._micro_batch = 0

    def begin(self, first: int) -> None:
        """A forward pass over the global batch that begins at sample `first`; what an earlier pass
        over the same batch summed (Megatron may run a step again) is dropped."""
        self._first, self._micro_batch, self._step = first, 0, None

    def end(self) -> None:
        """The step counts."""
        if self._step is not None:
            self._sums = self._step if self._sums is None else self._sums + self._step
        self._step = None

    def take(self) -> torch.Tensor | None:
        """(2, K) float64: losses, tokens; None where there were none. Starts anew."""
        sums, self._sums = self._sums, None
        return sums

    def watch(self, loss_func: Callable[..., Any]) -> Callable[..., Any]:
        """`loss_func` that also sums its token losses by source.

        `loss_func(output)` gets token losses (B, S) and holds the loss mask, of as many elements,
        among its bound arguments, as Megatron's scripts do: `partial(loss_func, loss_mask, ...)`.
        """
        mask = _tensor_of(loss_func)

        @functools.wraps(loss_func)
        def watched(output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            result = loss_func(output, *args, **kwargs)
            if not kwargs.get("non_loss_data"):
                self._add(output, mask)
            return result

        return watched

    @torch.no_grad()
    def _add(self, output: Any, mask: torch.Tensor | None) -> None:
        rows = self.layout.micro_batch_size
        micro_batch, self._micro_batch = self._micro_batch, self._micro_batch + 1
        if self.problem is not None:
            return
        if mask is None or not isinstance(output, torch.Tensor) or mask.numel() != output.numel():
            self.problem = (
                "the loss function of this script is not bound to a loss_mask of as many elements "
                "as the token losses that it is given"
            )
            return
        if output.numel() % rows:
            self.problem = f"{output.numel()} token losses are no whole rows of {rows} samples"
            return
        samples = self.layout.samples(self._first, micro_batch)
        sources = torch.tensor([self.blend.source_of(i) for i in samples])
        factors = torch.tensor([self.blend.mask_factor(i) for i in samples], dtype=torch.float64)
        # A source without weight has a mask of zeros, from which its losses cannot be told.
        scales = torch.where(factors > 0, 1 / factors, 0.0)
        if output.is_cuda:
            sources, scales = sources.pin_memory(), scales.pin_memory()
        sources = sources.to(output.device, non_blocking=True)
        scales = scales.to(output.device, non_blocking=True)
        masks = mask.reshape(rows, -1).float()
        # What is masked may be anything, NaN too.
        losses = torch.where(masks > 0, output.detach().reshape(rows, -1).float(), 0.0) * masks
        by_row = torch.stack([losses.sum(1), masks.sum(1)]).double() * scales
        if self._step is None:
            self._step = by_row.new_zeros(2, len(self.blend.names))
        self._step.index_add_(1, sources, by_row)


def _tensor_of(loss_func: Any) -> torch.Tensor | None:
    """The first tensor that a partial function is bound to."""
    if not isinstance(loss_func, functools.partial):
        return None
    bound = [*loss_func.args, *loss_func.keywords.values()]
    return next((value for value in bound if isinstance(value, torch.Tensor)), None)

"""Batches that are read ahead: the same ones, in order, never past the end of an interval."""

from __future__ import annotations

import threading
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.batch.read_ahead import ReadAhead


def test_what_is_taken_is_what_is_read_and_nothing_is_read_past_an_interval() -> None:
    read: list[tuple[int, int]] = []
    threads = set()

    def batch(step: int, micro_step: int) -> tuple[int, int]:
        read.append((step, micro_step))
        threads.add(threading.current_thread())
        return step, micro_step

    ahead = ReadAhead(batch, micro_steps=2, within=3, total=8)
    order = [(step, micro) for step in range(8) for micro in range(2)]
    for pair in order:
        assert ahead.take(*pair) == pair
        # Waits for what was asked for, so that it shows.
        for future in ahead._pending.values():
            future.result()
        assert max(read)[0] // 3 == pair[0] // 3
    assert read == order
    assert len(threads) == 2


def test_another_pair_than_the_next_is_read_alone() -> None:
    lock, busy = threading.Lock(), []

    def batch(step: int, micro_step: int) -> int:
        busy.append(lock.acquire(blocking=False))
        lock.release()
        return step

    ahead = ReadAhead(batch, micro_steps=1, within=100, total=100)
    assert [ahead.take(step, 0) for step in (0, 1, 50, 51, 3)] == [0, 1, 50, 51, 3]
    assert all(busy)


def test_an_error_comes_where_the_batch_is_taken() -> None:
    def batch(step: int, micro_step: int) -> int:
        if step == 2:
            raise OSError("gone")
        return step

    ahead = ReadAhead(batch, micro_steps=1, within=10, total=10)
    assert [ahead.take(step, 0) for step in (0, 1)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        ahead.take(2, 0)


class OfTheHost(torch.Tensor):
    """Notes what is asked of it on its way to an accelerator, which there need not be."""

    asked: ClassVar[list[tuple[str, tuple[Any, ...], dict[str, Any]]]] = []

    def pin_memory(self, *args: Any, **kwargs: Any) -> Self:
        self.asked.append(("pin_memory", args, kwargs))
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        self.asked.append(("to", args, kwargs))
        return self


def test_a_batch_is_pinned_and_copied_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(OfTheHost, "asked", asked)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.int64).as_subclass(OfTheHost)

    names = ("tokens", "labels", "loss_mask")
    batch = Batch.of_sources(np.arange(2), **{name: tensor(2, 8) for name in names})
    asked.clear()
    batch.to("cuda:0")
    copies = ("to", ("cuda:0",), {"non_blocking": True})
    assert asked == [("pin_memory", (), {}), copies] * 3
    asked.clear()
    batch.to("cpu")  # there is nothing to copy
    assert asked == []

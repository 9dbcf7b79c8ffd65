"""Batches that are read ahead: the same ones, in order, never past the end of an interval."""

from __future__ import annotations

import threading

import pytest

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

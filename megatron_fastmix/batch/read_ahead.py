"""Reading the next batches in a thread while the accelerator trains on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")

DEPTH = 2
"""Batches that are read ahead."""


class ReadAhead(Generic[Item]):
    """`read(step, micro_step)`, most often of a pair that was read before it is asked for.

    Only pairs of the same interval of `within` steps are read ahead: the draws of the next may
    depend on what happens at its end. What a pair gives must depend on the pair alone.
    """

    def __init__(
        self, read: Callable[[int, int], Item], *, micro_steps: int, within: int, total: int
    ) -> None:
        """`micro_steps` of a step; the run ends after step `total` − 1."""
        self._read = read
        self._micro_steps = micro_steps
        self._within = within
        self._total = total
        self._pending: dict[tuple[int, int], Future[Item]] = {}
        self._thread: ThreadPoolExecutor | None = None

    def take(self, step: int, micro_step: int) -> Item:
        """What `read` gives, or raises."""
        pair = (step, micro_step)
        if pair not in self._pending:
            # The first of an interval, or another than the one that was to come.
            self._drop()
            item = self._read(step, micro_step)
        else:
            item = self._pending.pop(pair).result()
        self._ask_for_next(pair)
        return item

    def _ask_for_next(self, pair: tuple[int, int]) -> None:
        following = pair
        for _ in range(DEPTH):
            step, micro_step = following
            following = (step, micro_step + 1)
            if following[1] == self._micro_steps:
                following = (step + 1, 0)
            if following[0] // self._within != pair[0] // self._within:
                return
            if following[0] >= self._total:
                return
            if following not in self._pending:
                if self._thread is None:
                    # One thread: the datasets below are read in order, by nobody else meanwhile.
                    self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
                self._pending[following] = self._thread.submit(self._read, *following)

    def wait(self) -> None:
        """Until the thread stands still, so that others may read what it does."""
        for future in self._pending.values():
            future.exception()  # raised where the item is taken

    def _drop(self) -> None:
        for future in self._pending.values():
            if not future.cancel():
                future.exception()  # waits: nobody else may read meanwhile
        self._pending.clear()

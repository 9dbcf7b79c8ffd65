"""Compiled from `_draws.c`."""

from collections.abc import Callable

DRAW_ORDER: int
"""`spread_order.DRAW_ORDER` of the release that it was compiled from."""

class Stretch:
    """Draws of blocks that have the same weights."""

    def __init__(
        self,
        block_size: int,
        stride: int,
        turn: int,
        start: int,
        end: int,
        edges: bytes,
        base: bytes,
        sizes: bytes,
        epoch_key: Callable[[int, int], int],
    ) -> None:
        """Of the blocks from `start` to `end`; `edges`, `base` and `sizes` are (K,) int64, and
        `epoch_key` tells the key of a source's epoch. Raises `ValueError`."""

    def locate(self, i: int) -> tuple[int, int] | None:
        """Source and sample of draw i; None where it lies in another block."""

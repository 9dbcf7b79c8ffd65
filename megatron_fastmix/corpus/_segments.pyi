"""Compiled from `_segments.c`."""

from collections.abc import Callable

class Table:
    """Parts of text and their ids, bounded in memory."""

    def __init__(self, kinds: bytes, max_parts: int = 65536) -> None:
        """`kinds` tells ASCII characters of different kinds apart, (128,)."""

    def encode(
        self, texts: list[str], encode_parts: Callable[[list[str]], list[list[int]]]
    ) -> tuple[bytes, list[int]]:
        """Ids of all texts one after another, int32, and tokens of each."""

    def parts(self) -> int:
        """Parts that the table holds."""

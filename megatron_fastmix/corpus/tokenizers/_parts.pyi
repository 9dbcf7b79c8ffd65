"""Compiled from `_parts.c`."""

from collections.abc import Callable

class Table:
    """Parts of text and their ids, bounded in memory."""

    def __init__(self, kinds: bytes, item_size: int, max_parts: int = 32768) -> None:
        """`kinds` tells ASCII characters of different kinds apart, (128,)."""

    def encode(
        self, text: str, encode_parts: Callable[[list[str]], list[list[int]]], out: bytearray
    ) -> None:
        """Appends the ids of a text to `out`: uint16 or int32, by `item_size` 2 or 4."""

    def parts(self) -> int:
        """Parts that the table holds."""

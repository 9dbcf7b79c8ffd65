"""Names in a sentence."""

from __future__ import annotations

from collections.abc import Sequence


def listed(items: Sequence[str], most: int = 5) -> str:
    """The first `most` of them, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more

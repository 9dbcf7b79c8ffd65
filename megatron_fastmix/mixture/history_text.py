"""The mixture's history as JSON: every number of it is in every checkpoint, and of 10,000 sources
over hundreds of outer steps written as digits it would be most of what a checkpoint takes."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_fastmix.errors import CheckpointError

PACKED_ABOVE = 256
"""Numbers a row beyond which rows are packed; shorter ones stay readable."""


def packed_rows(rows: Sequence[np.ndarray]) -> list[Any]:
    """Rows of float64, each as a list with None for what is not finite, or where it is long as
    base64 of its little-endian bytes."""
    return [
        base64.b64encode(row.astype("<f8").tobytes()).decode("ascii")
        if len(row) > PACKED_ABOVE
        else [value if math.isfinite(value) else None for value in row.tolist()]
        for row in rows
    ]


def unpacked_rows(rows: Sequence[Any], count: int) -> list[np.ndarray]:
    """What `packed_rows` took, bit for bit; lists are read whatever their length, as older
    checkpoints have them. Raises `CheckpointError` for rows that are not of `count` numbers."""
    try:
        found = [
            np.frombuffer(base64.b64decode(row, validate=True), "<f8").astype(np.float64)
            if isinstance(row, str)
            else np.array(row, dtype=np.float64)
            for row in rows
        ]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the checkpoint's history cannot be read: {error}") from None
    if any(row.shape != (count,) for row in found):
        raise CheckpointError(
            f"the checkpoint's history is not of the {count} sources; remove the checkpoint, so "
            "that the one before is taken"
        )
    return found

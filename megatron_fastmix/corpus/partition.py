"""Whose dataset a record goes to, by the value of a field."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass

import numpy as np

from megatron_fastmix.corpus.documents.document import FieldValue


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The datasets that a field splits one into, in the order in which they are written."""

    names: tuple[str, ...]
    """What stands after the dataset's prefix."""
    values: tuple[str, ...] = ()
    """The field's value of each; none for quantiles."""
    edges: tuple[float, ...] = ()
    """Scores that divide the quantiles, ascending, one fewer than `names`; a score at an edge
    belongs above it."""

    def __call__(self, value: FieldValue) -> int:
        """Index of the dataset. Raises `ValueError` for a value that none has."""
        if self.values:
            return self.values.index(value_text(value))
        return int(np.searchsorted(self.edges, score(value), side="right"))


def value_text(value: FieldValue) -> str:
    """The value as text: `true`, `3`, `en`. Raises `ValueError` for a score."""
    if isinstance(value, float):
        raise ValueError(f"found the score {value}; split scores with --quantiles N")
    return json.dumps(value) if isinstance(value, bool) else str(value)


def score(value: FieldValue) -> float:
    """The value as a finite number. Raises `ValueError` for anything else."""
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond the largest float
            number = float(value)
    if not math.isfinite(number):
        found = repr(value)
        shown = found if len(found) <= 60 else f"{found[:60]}..."
        raise ValueError(f"found {shown}; quantiles need a finite number")
    return number

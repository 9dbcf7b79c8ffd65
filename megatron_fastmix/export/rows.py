"""Shares of tokens as shares of rows or as repetitions, for tools that count those."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.blend import Blend, BlendEntry, round_weights

Rows = Literal["documents", "sequences"]
"""What one row of the tool's dataset holds: a whole document, or tokens cut to one length."""

ROW_DECIMALS = 6
"""A source of long documents has few rows, and these tools have no cache keyed by weights."""


def row_shares(blend: Blend, default: Rows) -> dict[str, float]:
    """Probabilities of drawing a row of each source so that its share of *tokens* is its weight.

    A row of a source has tokens/documents tokens on average where rows are documents, so the
    share is divided by that. `blend.rows` overrides the tool's `default`. The shares sum to 1.
    Raises `DataError` for a source whose documents are not known or whose share rounds to 0.
    """
    if (blend.rows or default) == "sequences":
        return {entry.name: float(entry.weight) for entry in blend.sources}
    for entry in blend.sources:
        if entry.documents < 1:
            raise DataError(
                f"source {entry.name}: documents is {entry.documents}, so tokens per document are "
                "not known; use --rows sequences where rows are cut to one length"
            )
    rows = {e.name: float(e.weight) * e.documents / e.tokens for e in blend.sources}
    total = sum(rows.values())
    rounded = round_weights({name: row / total for name, row in rows.items()}, ROW_DECIMALS)
    lost = [name for name, share in rounded.items() if float(share) == 0]
    if lost:
        raise DataError(
            f"source {lost[0]}: its share of rows rounds to 0 at {ROW_DECIMALS} decimals, and a "
            "source that is never drawn never ends; drop it with --min-weight"
        )
    return {name: float(share) for name, share in rounded.items()}


def repetitions(entry: BlendEntry, token_budget: int) -> float:
    """How often the whole source is seen in `token_budget` tokens, to six digits after the point.

    Documents or sequences, the number is the same.
    """
    return round(float(Fraction(entry.weight) * token_budget / entry.tokens), 6)

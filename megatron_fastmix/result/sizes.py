"""How large a dataset is in every unit that a reader counts in, and shares in each of them.

A weight is a share of *loss tokens*: all tokens of text, the answer tokens of answer-only rows. A
tool that draws rows, or samples of one length, needs other shares for the same mixture: of a source
that is read e times, e·size is drawn, whatever the size counts, so that

    share_k ∝ weight_k · size_k(unit) / loss_tokens_k.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Unit = Literal["loss_tokens", "tokens", "rows", "samples"]
"""`loss_tokens` count in the loss, `tokens` are all that are read, `rows` are documents or records.
`samples` are what Megatron draws: `seq_length` tokens of text, or one answer-only row."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a dataset."""

    tokens: int
    """All tokens."""
    loss_tokens: int
    """Those that count in the loss: all of text, the answers' of answer-only rows."""
    rows: int
    """Documents of text; rows with an answer of answer-only data."""

    @property
    def answer_only(self) -> bool:
        """Whether only answers count in the loss. Then not all tokens do: a row's first never is
        predicted."""
        return self.loss_tokens < self.tokens

    def count(self, unit: Unit, seq_length: int) -> Fraction:
        """The size in `unit`; a sample of text has `seq_length` tokens."""
        if unit == "samples":
            return Fraction(self.rows) if self.answer_only else Fraction(self.tokens, seq_length)
        return Fraction(getattr(self, unit))


@dataclass(frozen=True, kw_only=True)
class Shard(Size):
    """One dataset of a source."""

    path: str
    """Prefix of the indexed dataset, without .bin and .idx."""


def total_size(sizes: Iterable[Size]) -> Size:
    """Of all of them together."""
    parts = list(sizes)
    return Size(
        tokens=sum(part.tokens for part in parts),
        loss_tokens=sum(part.loss_tokens for part in parts),
        rows=sum(part.rows for part in parts),
    )


def shares_in(
    unit: Unit, weights: Mapping[str, float], sizes: Mapping[str, Size], seq_length: int
) -> dict[str, float]:
    """Shares of `unit`, summing to 1, that give `weights` as the shares of loss tokens.

    Bit for bit `weights` where the unit makes no difference. Every size has a loss token.
    """
    densities = {
        name: size.count(unit, seq_length) / size.loss_tokens for name, size in sizes.items()
    }
    if len(set(densities.values())) == 1:
        return dict(weights)
    scaled = {name: weight * float(densities[name]) for name, weight in weights.items()}
    total = math.fsum(scaled.values())
    return {name: value / total for name, value in scaled.items()}

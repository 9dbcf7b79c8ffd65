"""A blend ready to be written: positive weights as decimals that sum to exactly 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.adjustment import NO_ADJUSTMENT, Adjusted, Adjustment, adjust
from megatron_fastmix.result.mixture_file import (
    ANSWER_UNIT,
    MixtureFile,
    SourceWeight,
    TargetResult,
    rows_and_answers,
)

DEFAULT_DECIMALS = 4


@dataclass(frozen=True, kw_only=True)
class BlendEntry:
    """One dataset of a blend."""

    name: str
    path: str
    weight: str
    """Share of samples of `seq_length` tokens, as decimal text; of rows for answer-only data."""
    tokens: int
    """Tokens of the whole dataset; rows for answer-only data."""
    documents: int = 0
    """Documents of the whole dataset; 0 where they are not known."""


@dataclass(frozen=True, kw_only=True)
class Blend:
    """What every format is written from."""

    token_budget: int
    """Tokens of the run to come; rows for answer-only data."""
    sources: tuple[BlendEntry, ...]
    """Only sources whose weight is above 0."""
    targets: tuple[BlendEntry, ...]
    """The held-out targets, which are the natural validation set of the run to come."""
    left_out: tuple[str, ...] = ()
    """Sources whose weight is 0 or rounds to 0."""
    dropped: tuple[str, ...] = ()
    """Those of them that were dropped by `--min-weight`."""
    capped: tuple[str, ...] = ()
    """Sources held at `--max-epochs`."""
    rows: Literal["documents", "sequences"] | None = None
    """What a row holds where the tool counts rows; None takes what is usual with the tool."""

    @property
    def weights(self) -> dict[str, float]:
        """The weights as written, by source; 0 for what is left out."""
        written = {entry.name: float(entry.weight) for entry in self.sources}
        return written | dict.fromkeys(self.left_out, 0.0)


def round_weights(
    weights: Mapping[str, float],
    decimals: int = DEFAULT_DECIMALS,
    ceilings: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Rounds `weights`, which sum to 1, to `decimals` places so that the sum is exactly 1.

    Largest remainder: each weight is rounded down, and the units left over go to the largest
    remainders (equal remainders: first come, first served). Few decimals keep Megatron's dataset
    caches reusable, because the weights are part of the cache's key. Each result is within one
    unit of the last place of its weight, and none is above its ceiling where `ceilings` has one;
    then units may add up on the sources that have room.

    Returns decimal texts such as "0.2500", in the order of `weights`. Raises `ConfigError` where
    the ceilings leave no room at so few decimals.
    """
    if not 1 <= decimals <= 12:
        raise ConfigError(f"--decimals: found {decimals}; use 1 to 12")
    unit = 10**decimals
    total = math.fsum(weights.values())
    exact = {name: weight / total * unit for name, weight in weights.items()}
    counts = {name: math.floor(value) for name, value in exact.items()}
    most = {name: _floor((ceilings or {}).get(name, math.inf) * unit) for name in exact}
    counts = {name: min(counts[name], most[name]) for name in exact}
    left = unit - sum(counts.values())
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    while left:
        takers = [n for n in by_remainder if counts[n] < most[n] and exact[n] > 0][:left]
        if not takers:
            raise ConfigError(f"--decimals {decimals}: no room below the caps; use more decimals")
        for name in takers:
            counts[name] += 1
        left -= len(takers)
    return {name: f"{n // unit}.{n % unit:0{decimals}d}" for name, n in counts.items()}


def _floor(value: float) -> float:
    return value if math.isinf(value) else math.floor(value * (1 + 1e-12))


def make_blend(
    mixture: MixtureFile,
    *,
    decimals: int = DEFAULT_DECIMALS,
    adjustment: Adjustment = NO_ADJUSTMENT,
    rows: Literal["documents", "sequences"] | None = None,
) -> Blend:
    """The blend of `mixture` at its learned weights, corrected by `adjustment`.

    Tools for fine-tuning count rows, so shares of answer tokens become shares of rows, and the
    token budget the number of rows that hold as many answer tokens.
    """
    adjusted = adjust(mixture, adjustment)
    if mixture.unit == ANSWER_UNIT:
        return _in_rows(mixture, adjusted, decimals)
    rounded = round_weights(adjusted.weights, decimals, adjusted.ceilings)
    entries = [_entry(source, rounded[source.name], source.documents) for source in mixture.sources]
    target_weights = round_weights({t.name: t.weight for t in mixture.targets}, decimals)
    return Blend(
        token_budget=adjusted.token_budget,
        sources=tuple(entry for entry in entries if float(entry.weight) > 0),
        targets=tuple(
            _entry(target, target_weights[target.name])
            for target in mixture.targets
            if float(target_weights[target.name]) > 0
        ),
        left_out=tuple(entry.name for entry in entries if float(entry.weight) == 0),
        dropped=adjusted.dropped,
        capped=adjusted.capped,
        rows=rows,
    )


def _in_rows(mixture: MixtureFile, adjusted: Adjusted, decimals: int) -> Blend:
    sizes = {source.name: rows_and_answers(source) for source in mixture.sources}
    per_token = {name: rows / answers for name, (rows, answers) in sizes.items()}
    rows = {name: weight * per_token[name] for name, weight in adjusted.weights.items()}
    total = math.fsum(rows.values())
    ceilings = {name: share * per_token[name] / total for name, share in adjusted.ceilings.items()}
    rounded = round_weights({name: n / total for name, n in rows.items()}, decimals, ceilings)
    entries = [
        BlendEntry(
            name=source.name,
            path=source.path,
            weight=rounded[source.name],
            tokens=sizes[source.name][0],
            documents=sizes[source.name][0],
        )
        for source in mixture.sources
    ]
    targets = round_weights({t.name: t.weight for t in mixture.targets}, decimals)
    return Blend(
        token_budget=round(adjusted.token_budget * total),
        sources=tuple(entry for entry in entries if float(entry.weight) > 0),
        targets=tuple(
            _entry(t, targets[t.name]) for t in mixture.targets if float(targets[t.name]) > 0
        ),
        left_out=tuple(entry.name for entry in entries if float(entry.weight) == 0),
        dropped=adjusted.dropped,
        capped=adjusted.capped,
        rows="sequences",
    )


def _entry(dataset: SourceWeight | TargetResult, weight: str, documents: int = 0) -> BlendEntry:
    return BlendEntry(
        name=dataset.name,
        path=dataset.path,
        weight=weight,
        tokens=dataset.tokens,
        documents=documents,
    )

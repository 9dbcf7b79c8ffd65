"""A blend ready to be written: positive shares, as decimals that sum to exactly 1, of what the tool
that reads them counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.adjustment import NO_ADJUSTMENT, Adjusted, Adjustment, adjust
from megatron_fastmix.result.learned_mixture import LearnedMixture, LearnedSource
from megatron_fastmix.result.rounding import DEFAULT_DECIMALS, round_weights
from megatron_fastmix.result.sizes import Shard, Unit

EPOCH_DECIMALS = 6
"""Places of numbers of repetitions."""
ROW_DECIMALS = 6
"""A source of long documents has few rows, and tools that count rows have no cache keyed by the
weights."""


@dataclass(frozen=True, kw_only=True)
class BlendEntry:
    """One dataset of a blend."""

    name: str
    """The source's; with a number behind it where the source has several datasets."""
    path: str
    weight: str
    """Share of the blend's unit, as decimal text."""
    count: Fraction
    """Size of the dataset in that unit; 0 where it is not known."""


@dataclass(frozen=True, kw_only=True)
class Blend:
    """What every format is written from."""

    unit: Unit
    """What the weights are shares of."""
    budget: Fraction
    """What the run to come reads, in that unit."""
    sources: tuple[BlendEntry, ...]
    """Only datasets whose weight is above 0."""
    targets: tuple[BlendEntry, ...]
    """The held-out targets, which are the natural validation set of the run to come."""
    mixture: LearnedMixture
    """The mixture that is written, after the corrections."""
    shares: Mapping[str, float]
    """By source the share of `unit` that is written; 0 for what is left out."""
    dropped: tuple[str, ...] = ()
    """Sources that were dropped by `--min-weight`."""
    capped: tuple[str, ...] = ()
    """Sources held at `--max-epochs`."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Sources whose weight is 0 or rounds to 0."""
        return tuple(name for name, share in self.shares.items() if share == 0)

    def epochs(self, entry: BlendEntry) -> Fraction:
        """How often a dataset is read in the budget."""
        return Fraction(entry.weight) * self.budget / entry.count


def make_blend(
    mixture: LearnedMixture,
    unit: Unit = "samples",
    *,
    decimals: int = DEFAULT_DECIMALS,
    adjustment: Adjustment = NO_ADJUSTMENT,
) -> Blend:
    """The blend of `mixture`, corrected by `adjustment`, in shares of `unit`.

    Shares of rows have `ROW_DECIMALS` places at least, and are those of the weights that are
    rounded to `decimals` before. Raises `DataError` for a source whose rows are not known or
    whose share of them rounds to 0.
    """
    adjusted = adjust(mixture, adjustment)
    written = adjusted.mixture
    if unit == "rows":
        written = _rounded_first(adjusted, decimals)
        decimals = max(decimals, ROW_DECIMALS)
        _check_rows(written)
    shares, ceilings = written.shares(unit), written.ceilings(unit, adjusted.max_epochs)
    parts = {
        (source.name, number): (shard, _part(source, shard, unit, mixture.seq_length))
        for source in written.sources
        for number, shard in enumerate(source.shards, start=1)
    }
    rounded = round_weights(
        {key: shares[key[0]] * part for key, (_, part) in parts.items()},
        decimals,
        {key: ceilings[key[0]] * part for key, (_, part) in parts.items()},
    )
    if unit == "rows":
        for (name, _), text in rounded.items():
            if shares[name] > 0 and float(text) == 0:
                raise DataError(
                    f"source {name}: its share of rows rounds to 0 at {decimals} decimals, and "
                    "a source that is never drawn never ends; drop it with --min-weight"
                )
    several = {source.name for source in written.sources if len(source.shards) > 1}
    return Blend(
        unit=unit,
        budget=written.budget(unit),
        sources=tuple(
            BlendEntry(
                name=f"{name}/{number}" if name in several else name,
                path=shard.path,
                weight=rounded[name, number],
                count=shard.count(unit, mixture.seq_length),
            )
            for (name, number), (shard, _) in parts.items()
            if float(rounded[name, number]) > 0
        ),
        targets=_targets(written, unit, decimals),
        mixture=written,
        shares={
            source.name: math.fsum(
                float(rounded[source.name, number]) for number in range(1, len(source.shards) + 1)
            )
            for source in written.sources
        },
        dropped=adjusted.dropped,
        capped=adjusted.capped,
    )


def _part(source: LearnedSource, shard: Shard, unit: Unit, seq_length: int) -> float:
    """The shard's part of its source: one epoch of the source is one epoch of each shard."""
    if len(source.shards) == 1:
        return 1.0
    return float(shard.count(unit, seq_length) / source.size.count(unit, seq_length))


def _targets(mixture: LearnedMixture, unit: Unit, decimals: int) -> tuple[BlendEntry, ...]:
    shares = mixture.target_shares(unit)
    parts: dict[str, tuple[str, Fraction, float]] = {}
    for target in mixture.targets:
        whole = target.size.count(unit, mixture.seq_length) if target.size else Fraction(0)
        if not target.shards:
            parts[target.name] = (target.path, whole, shares[target.name])
        for number, shard in enumerate(target.shards, start=1):
            count = shard.count(unit, mixture.seq_length)
            share = shares[target.name] * float(count / whole)
            parts[f"{target.name}/{number}"] = (shard.path, count, share)
    rounded = round_weights({name: share for name, (_, _, share) in parts.items()}, decimals)
    return tuple(
        BlendEntry(name=name, path=path, weight=rounded[name], count=count)
        for name, (path, count, _) in parts.items()
        if float(rounded[name]) > 0
    )


def _rounded_first(adjusted: Adjusted, decimals: int) -> LearnedMixture:
    """The mixture at its rounded weights, so that tools that count rows leave out and draw what the
    other formats do."""
    ceilings = adjusted.mixture.ceilings("loss_tokens", adjusted.max_epochs)
    rounded = round_weights(adjusted.mixture.weights, decimals, ceilings)
    return adjusted.mixture.corrected({name: float(text) for name, text in rounded.items()})


def _check_rows(mixture: LearnedMixture) -> None:
    for source in mixture.sources:
        if source.weight > 0 and source.size.rows < 1:
            raise DataError(
                f"source {source.name}: documents is {source.size.rows}, so tokens per document "
                "are not known; use --rows sequences where rows are cut to one length"
            )

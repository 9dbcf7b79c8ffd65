"""A blend ready to be written: positive shares, as decimals that sum to exactly 1, of what the tool
that reads them counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.adjustment import NO_ADJUSTMENT, Adjusted, Adjustment, adjust
from megatron_fastmix.result.learned_mixture import LearnedMixture, LearnedSource
from megatron_fastmix.result.rounding import default_decimals, round_weights, split_weight
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
    """See `dataset_names`."""
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
    decimals: int
    """Places that the sources' weights were rounded to; those of datasets may be more."""
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

    def repetitions(self, entry: BlendEntry) -> float:
        """`epochs` as formats write them. Raises `DataError` where they round to 0, with which no
        sample would be drawn."""
        number = round(float(self.epochs(entry)), EPOCH_DECIMALS)
        if not number:
            raise DataError(
                f"source {entry.name}: is read {0:.{EPOCH_DECIMALS}f} times in the token budget of "
                f"{self.mixture.token_budget:,}; give a larger --token-budget, or drop it with "
                "--min-weight"
            )
        return number


def make_blend(
    mixture: LearnedMixture,
    unit: Unit = "samples",
    *,
    decimals: int | None = None,
    adjustment: Adjustment = NO_ADJUSTMENT,
) -> Blend:
    """The blend of `mixture`, corrected by `adjustment`, in shares of `unit`, rounded to `decimals`
    (None: `default_decimals`).

    Shares of rows have `ROW_DECIMALS` places at least, and are those of the weights that are
    rounded to `decimals` before. Raises `DataError` for a source whose rows are not known or
    whose share of them rounds to 0.
    """
    adjusted = adjust(mixture, adjustment)
    written = adjusted.mixture
    if decimals is None:
        decimals = default_decimals(len(written.sources))
    of_weights = decimals
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
    of_sources = round_weights(shares, decimals, ceilings)
    if unit == "rows":
        for name, text in of_sources.items():
            if shares[name] > 0 and float(text) == 0:
                raise DataError(
                    f"source {name}: its share of rows rounds to 0 at {decimals} decimals, and "
                    "a source that is never drawn never ends; drop it with --min-weight"
                )
    rounded = _split(of_sources, {key: part for key, (_, part) in parts.items()}, decimals)
    names = dataset_names({source.name: len(source.shards) for source in written.sources})
    return Blend(
        unit=unit,
        budget=written.budget(unit),
        sources=tuple(
            BlendEntry(
                name=names[name, number],
                path=shard.path,
                weight=rounded[name, number],
                count=shard.count(unit, mixture.seq_length),
            )
            for (name, number), (shard, _) in parts.items()
            if float(rounded[name, number]) > 0
        ),
        targets=_targets(written, unit, decimals),
        mixture=written,
        shares={name: float(text) for name, text in of_sources.items()},
        decimals=of_weights,
        dropped=adjusted.dropped,
        capped=adjusted.capped,
    )


def dataset_names(counts: Mapping[str, int]) -> dict[tuple[str, int], str]:
    """Names of datasets by (owner, number), from how many each owner has: the owner's, with its
    number behind slashes where it has several. No two are equal, whatever owners are called."""
    found: dict[tuple[str, int], str] = {}
    taken = set(counts)
    for owner, count in counts.items():
        if count < 2:
            found[owner, 1] = owner
            continue
        numbers, slashes = range(1, count + 1), "/"
        while any(f"{owner}{slashes}{number}" in taken for number in numbers):
            slashes += "/"
        found |= {(owner, number): f"{owner}{slashes}{number}" for number in numbers}
        taken |= {found[owner, number] for number in numbers}
    return found


def _split(
    rounded: Mapping[str, str], parts: Mapping[tuple[str, int], float], decimals: int
) -> dict[tuple[str, int], str]:
    """The weights of datasets, by (owner, number), from those of their owners."""
    of_owner: dict[str, dict[tuple[str, int], float]] = {name: {} for name in rounded}
    for key, part in parts.items():
        of_owner[key[0]][key] = part
    found: dict[tuple[str, int], str] = {}
    for name, each in of_owner.items():
        found |= split_weight(rounded[name], each, decimals)
    return found


def _part(source: LearnedSource, shard: Shard, unit: Unit, seq_length: int) -> float:
    """The shard's part of its source: one epoch of the source is one epoch of each shard."""
    if len(source.shards) == 1:
        return 1.0
    return float(shard.count(unit, seq_length) / source.size.count(unit, seq_length))


def _targets(mixture: LearnedMixture, unit: Unit, decimals: int) -> tuple[BlendEntry, ...]:
    names = dataset_names({target.name: len(target.shards) for target in mixture.targets})
    datasets: dict[tuple[str, int], tuple[str, Fraction]] = {}
    parts: dict[tuple[str, int], float] = {}
    for target in mixture.targets:
        whole = target.size.count(unit, mixture.seq_length) if target.size else Fraction(0)
        each = [(shard.path, shard.count(unit, mixture.seq_length)) for shard in target.shards]
        for number, (path, count) in enumerate(each or [(target.path, whole)], start=1):
            datasets[target.name, number] = path, count
            parts[target.name, number] = float(count / whole) if each else 1.0
    rounded = _split(round_weights(mixture.target_shares(unit), decimals), parts, decimals)
    return tuple(
        BlendEntry(
            name=names[name, number],
            path=path,
            weight=rounded[name, number],
            count=count,
        )
        for (name, number), (path, count) in datasets.items()
        if float(rounded[name, number]) > 0
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

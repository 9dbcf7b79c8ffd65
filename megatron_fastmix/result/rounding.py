"""Shares as decimal texts that sum to exactly 1."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from fractions import Fraction
from typing import TypeVar

from megatron_fastmix.errors import ConfigError

Key = TypeVar("Key", bound=Hashable)

_DEFAULT_DECIMALS = 4
_UNITS_OF_MEAN = 100
"""Of the last place in a weight of 1/K at least, where nobody says how many decimals."""
MOST_DECIMALS = 12
LEAST_UNITS = 1000
"""Of the last place in the weight of a dataset that is one of several of its source."""


def default_decimals(count: int) -> int:
    """Places for the weights of `count` sources: 4, or more above 100 sources, many of which would
    vanish. Few keep Megatron's dataset caches, whose keys have the weights."""
    places = _DEFAULT_DECIMALS
    while 10**places < _UNITS_OF_MEAN * count:
        places += 1
    return places


def round_weights(
    weights: Mapping[Key, float],
    decimals: int | None = None,
    ceilings: Mapping[Key, float] | None = None,
) -> dict[Key, str]:
    """Rounds `weights`, divided by their sum, to `decimals` places so that the sum is exactly 1.

    Largest remainder: each weight is rounded down, and the units left over go to the largest
    remainders (equal remainders: first come, first served). Without `decimals` they are
    `default_decimals`. Each result is within one unit of the last place of its weight, and none is
    above its ceiling where `ceilings` has one; then units may add up on the sources that have room.

    Returns decimal texts such as "0.2500", in the order of `weights`. Raises `ConfigError` where
    the ceilings leave no room at so few decimals.
    """
    if decimals is None:
        decimals = default_decimals(len(weights))
    if not 1 <= decimals <= MOST_DECIMALS:
        raise ConfigError(f"--decimals: found {decimals}; use 1 to {MOST_DECIMALS}")
    unit = 10**decimals
    total = math.fsum(weights.values())
    exact = {name: weight / total * unit for name, weight in weights.items()}
    most = {name: _floor((ceilings or {}).get(name, math.inf) * unit) for name in exact}
    counts = _apportioned(exact, unit, most)
    if counts is None:
        raise ConfigError(
            f"--decimals {decimals}: no room below the caps; use more decimals, or "
            "looser caps (--max-epochs, or a smaller --token-budget)"
        )
    return {name: _text(count, decimals) for name, count in counts.items()}


def written_weights(weights: Mapping[Key, float], decimals: int | None = None) -> dict[Key, str]:
    """`round_weights` without what rounds to 0, as a blend file has them."""
    rounded = round_weights(weights, decimals)
    return {name: text for name, text in rounded.items() if float(text) > 0}


def split_weight(weight: str, parts: Mapping[Key, float], decimals: int) -> dict[Key, str]:
    """Splits a rounded weight by `parts`, which sum to 1, so that the sum is exactly `weight`.

    A source's datasets get as many more places than `decimals` as keep each within 0.1 % of its
    part: rounded alone, those of a source of hundreds would vanish or be read twice as often.
    """
    share, places = Fraction(weight), decimals
    if len(parts) > 1:
        places = places_for((float(share) * part for part in parts.values()), decimals)
    units = int(share * 10**places)
    counts = _apportioned({name: part * units for name, part in parts.items()}, units)
    assert counts is not None
    return {name: _text(count, places) for name, count in counts.items()}


def places_for(weights: Iterable[float], decimals: int) -> int:
    """The decimals, as many as `decimals` at least, that keep positive `weights` within 0.1 %."""
    least = min((weight for weight in weights if weight > 0), default=math.inf)
    places = decimals
    while least * 10**places < LEAST_UNITS and places < MOST_DECIMALS:
        places += 1
    return places


def _apportioned(
    exact: Mapping[Key, float], total: int, most: Mapping[Key, float] | None = None
) -> dict[Key, int] | None:
    """Whole numbers that sum to `total`; None where `most` leaves no room."""
    most = most or dict.fromkeys(exact, math.inf)
    counts = {name: int(min(math.floor(value), most[name])) for name, value in exact.items()}
    left = total - sum(counts.values())
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    while left:
        takers = [n for n in by_remainder if counts[n] < most[n] and exact[n] > 0][:left]
        if not takers:
            return None
        for name in takers:
            counts[name] += 1
        left -= len(takers)
    return counts


def _text(count: int, decimals: int) -> str:
    unit = 10**decimals
    return f"{count // unit}.{count % unit:0{decimals}d}"


def _floor(value: float) -> float:
    return value if math.isinf(value) else math.floor(value * (1 + 1e-12))

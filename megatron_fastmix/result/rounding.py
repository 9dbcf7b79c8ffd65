"""Shares as decimal texts that sum to exactly 1."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

from megatron_fastmix.errors import ConfigError

Key = TypeVar("Key", bound=Hashable)

DEFAULT_DECIMALS = 4
"""Few, because Megatron's dataset caches are keyed by the weights."""


def round_weights(
    weights: Mapping[Key, float],
    decimals: int = DEFAULT_DECIMALS,
    ceilings: Mapping[Key, float] | None = None,
) -> dict[Key, str]:
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

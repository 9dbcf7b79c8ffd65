"""A blend ready to be written: positive weights as decimals that sum to exactly 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.mixture_file import MixtureFile, SourceWeight, TargetResult

DEFAULT_DECIMALS = 4


@dataclass(frozen=True, kw_only=True)
class BlendEntry:
    """One dataset of a blend."""

    name: str
    path: str
    weight: str
    """Share of samples of `seq_length` tokens, as decimal text."""
    tokens: int
    """Tokens of the whole dataset."""


@dataclass(frozen=True, kw_only=True)
class Blend:
    """What every format is written from."""

    token_budget: int
    """Tokens of the run to come."""
    sources: tuple[BlendEntry, ...]
    """Only sources whose weight is above 0."""
    targets: tuple[BlendEntry, ...]
    """The held-out targets, which are the natural validation set of the run to come."""
    left_out: tuple[str, ...] = ()
    """Sources whose weight is 0 or rounds to 0."""


def round_weights(weights: Mapping[str, float], decimals: int = DEFAULT_DECIMALS) -> dict[str, str]:
    """Rounds `weights`, which sum to 1, to `decimals` places so that the sum is exactly 1.

    Largest remainder: each weight is rounded down, and the units left over go to the largest
    remainders (equal remainders: first come, first served). Few decimals keep Megatron's dataset
    caches reusable, because the weights are part of the cache's key. Each result is within one
    unit of the last place of its weight.

    Returns decimal texts such as "0.2500", in the order of `weights`.
    """
    if not 1 <= decimals <= 12:
        raise ConfigError(f"--decimals: found {decimals}; use 1 to 12")
    unit = 10**decimals
    total = math.fsum(weights.values())
    exact = {name: weight / total * unit for name, weight in weights.items()}
    counts = {name: math.floor(value) for name, value in exact.items()}
    left = unit - sum(counts.values())
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[:left]:
        counts[name] += 1
    return {name: f"{n // unit}.{n % unit:0{decimals}d}" for name, n in counts.items()}


def make_blend(mixture: MixtureFile, *, decimals: int = DEFAULT_DECIMALS) -> Blend:
    """The blend of `mixture` at its learned weights."""
    rounded = round_weights(mixture.weights, decimals)
    entries = [_entry(source, rounded[source.name]) for source in mixture.sources]
    target_weights = round_weights({t.name: t.weight for t in mixture.targets}, decimals)
    return Blend(
        token_budget=mixture.token_budget,
        sources=tuple(entry for entry in entries if float(entry.weight) > 0),
        targets=tuple(
            _entry(target, target_weights[target.name])
            for target in mixture.targets
            if float(target_weights[target.name]) > 0
        ),
        left_out=tuple(entry.name for entry in entries if float(entry.weight) == 0),
    )


def _entry(dataset: SourceWeight | TargetResult, weight: str) -> BlendEntry:
    return BlendEntry(name=dataset.name, path=dataset.path, weight=weight, tokens=dataset.tokens)

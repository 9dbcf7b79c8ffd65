"""The mixture that a search starts from, with its groups and their sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.config.groups import group_labels
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.mixture.grouping import Grouping
from megatron_fastmix.mixture.mixture import Mixture

_SLACK = 1e-9


def start_mixture(config: SearchConfig, loss_tokens: Sequence[int]) -> Mixture:
    """The mixture before the first outer step; `loss_tokens` are the sizes of the sources, (K,).

    Raises `ConfigError` where bounds leave a group with fixed shares no weight.
    """
    groups = source_groups(config, loss_tokens)
    limits = group_bounds(config, groups) if groups is not None and config.groups else None
    if groups is not None and config.mixture.learn == "groups":
        _check_bounds(groups.bounds(config.bounds, limits), groups.names)
    return Mixture(
        config.source_names,
        config.mixture,
        bounds=config.bounds,
        total_steps=config.outer_steps,
        groups=groups,
        group_bounds=limits,
    )


def source_groups(config: SearchConfig, loss_tokens: Sequence[int]) -> Grouping | None:
    """The groups of the sources; None where no source has one and `groups` asks nothing of any: a
    source without one is a group of its own name.

    The shares inside are those of `mixture.initial_weights`; without them by size with `learn:
    groups`, otherwise even, as the search starts from the sources.
    """
    if not config.groups and all(source.group is None for source in config.sources):
        return None
    even = np.ones(len(config.sources))
    by_size = loss_tokens if config.mixture.learn == "groups" else even
    return Grouping.of(group_labels(config.sources), config.mixture.initial_weights or by_size)


def group_bounds(config: SearchConfig, groups: Grouping) -> tuple[list[float], list[float]]:
    """The configured least and largest weight of each group, (G,)."""
    given = {group.name: (group.min_weight, group.max_weight) for group in config.groups}
    each = [given.get(name, (0.0, 1.0)) for name in groups.names]
    return [low for low, _ in each], [high for _, high in each]


def prior_weights(config: SearchConfig, groups: Grouping | None) -> Sequence[float] | None:
    """α₀ by source, (K,): of the configuration, or of its groups with the start's shares inside."""
    priors = {group.name: group.prior_weight for group in config.groups}
    if groups is None or all(each is None for each in priors.values()):
        return config.objective.prior_weights
    by_group = np.array([priors[name] for name in groups.names], dtype=np.float64)
    shares: list[float] = (by_group[groups.members] * groups.shares).tolist()
    return shares


def _check_bounds(bounds: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """With fixed shares inside, a source's bound is one of its group."""
    lower, upper = bounds
    for name, low, high in zip(names, lower, upper, strict=True):
        if low > high + _SLACK:
            raise ConfigError(
                f"group {name}: its shares inside are fixed (mixture.learn groups), and its bounds "
                f"and those of its sources ask for a weight of {low:.4g} or more and of "
                f"{high:.4g} or less; widen them, or learn sources"
            )
    if lower.sum() > 1 + _SLACK or upper.sum() < 1 - _SLACK:
        raise ConfigError(
            "groups: with the shares inside fixed (mixture.learn groups), the bounds of groups and "
            f"sources leave weights from {lower.sum():.4g} to {upper.sum():.4g} in all, and they "
            "sum to 1; widen them, or learn sources"
        )

"""Groups of sources: their bounds, their prior, and what must hold of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_fastmix.config.data import SourceConfig
from megatron_fastmix.config.require import require, require_bounds, require_name


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """What is asked of one group of sources."""

    name: str
    """As in `sources[].group`."""
    min_weight: float = 0.0
    """The sum of its sources' shares never falls below this."""
    max_weight: float = 1.0
    """The sum of its sources' shares never rises above this."""
    prior_weight: float | None = None
    """The group's share of α₀ (see `objective.prior_weights`), for every group or for none; inside
    a group α₀ has the shares that the search starts from."""

    def __post_init__(self) -> None:
        require_name(self.name, "groups: name")
        require_bounds(self.min_weight, self.max_weight, f"group {self.name}")
        require(
            self.prior_weight is None or self.prior_weight > 0,
            f"group {self.name}: prior_weight",
            self.prior_weight,
            "use a number above 0",
        )


def group_labels(sources: Sequence[SourceConfig]) -> list[str]:
    """The group of each source; a source without one is a group of its own name."""
    return [source.group or source.name for source in sources]


def check_groups(
    sources: Sequence[SourceConfig],
    groups: Sequence[GroupConfig],
    *,
    learn: str,
    entropy_weight: float,
    prior_weights: Sequence[float] | None,
) -> None:
    """Raises `ConfigError` for groups that are of no source, of two meanings, or whose bounds admit
    no mixture."""
    named = {source.group for source in sources if source.group is not None}
    alone = {source.name for source in sources if source.group is None}
    both = sorted(named & alone)
    require(
        not both,
        "sources: group",
        both,
        "a source without a group is one of its own name: rename the group, or put it in",
    )
    require(
        learn == "sources" or bool(named),
        "mixture.learn",
        learn,
        "no source names its group: set sources[].group, or use sources",
    )
    labels = group_labels(sources)
    require(
        learn == "sources" or len(set(labels)) >= 2,
        "mixture.learn",
        learn,
        "all sources are one group, and there is nothing to learn: name 2 groups or more",
    )
    listed = [group.name for group in groups]
    twice = [name for name, count in Counter(listed).items() if count > 1]
    require(not twice, "groups", twice, "each name may occur once")
    unknown = [name for name in listed if name not in labels]
    require(
        not unknown, "groups", unknown, f"no source has that group; there are {sorted(set(labels))}"
    )
    members_of: dict[str, list[SourceConfig]] = {}
    for label, source in zip(labels, sources, strict=True):
        members_of.setdefault(label, []).append(source)
    bounds = {group.name: group for group in groups}
    least, most = 0.0, 0.0
    for name, members in members_of.items():
        own = bounds.get(name) or GroupConfig(name=name)
        lowest = max(own.min_weight, math.fsum(s.min_weight for s in members))
        highest = min(own.max_weight, math.fsum(s.max_weight for s in members))
        require(
            lowest <= highest + 1e-9,
            f"group {name}: min_weight and max_weight",
            [own.min_weight, own.max_weight],
            "the bounds of its sources leave no weight between them",
        )
        least, most = least + lowest, most + highest
    require(
        least <= 1 + 1e-9 and most >= 1 - 1e-9,
        "groups",
        [[group.name, group.min_weight, group.max_weight] for group in groups],
        "with the bounds of the sources, the least weights must not sum to more than 1, nor the "
        "largest to less",
    )
    priors = [group.name for group in groups if group.prior_weight is not None]
    if priors:
        missing = sorted(set(labels) - set(priors))
        require(not missing, "groups: prior_weight", priors, f"give one to each: {missing} lack it")
        require(
            prior_weights is None and entropy_weight > 0,
            "groups: prior_weight",
            priors,
            "they act through objective.entropy_weight: set it above 0 (1e-6 is gentle), and leave "
            "objective.prior_weights out",
        )

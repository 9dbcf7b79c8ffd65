"""Corrections to learned weights before they are exported; each says what it changed."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.result.learned_mixture import LearnedMixture

SLACK = 1e-9
"""Room for rounding in sums of shares."""


@dataclass(frozen=True, kw_only=True)
class Adjustment:
    """What the user wants other than learned."""

    fixed: Mapping[str, float]
    """Shares of sources or groups that are set by hand (`--set`); the others keep their ratios."""
    groups: Mapping[str, Sequence[str]]
    """Sources, or patterns such as `web_*`, by group (`--group`). A group has the sum of its
    learned weights, and its sources share it in proportion to their tokens."""
    token_budget: int | None = None
    """Loss tokens of the run to come; None takes that of the mixture."""
    max_epochs: float | None = None
    """No source is seen more often than this in the token budget."""
    min_weight: float = 0.0
    """Sources below this share are dropped."""

    def __post_init__(self) -> None:
        if self.token_budget is not None and self.token_budget < 1:
            raise ConfigError(f"--token-budget: found {self.token_budget}; use 1 token or more")
        if self.max_epochs is not None and not 0 < self.max_epochs < math.inf:
            raise ConfigError(f"--max-epochs: found {self.max_epochs}; use a number above 0")
        if not 0 <= self.min_weight < 1:
            raise ConfigError(f"--min-weight: found {self.min_weight}; use a share in [0, 1)")
        for name, share in self.fixed.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"--set {name}={share}: use a share in [0, 1]")
        total = math.fsum(self.fixed.values())
        if total > 1 + SLACK:
            raise ConfigError(f"--set: the shares sum to {total:g}; they must not exceed 1")


NO_ADJUSTMENT = Adjustment(fixed={}, groups={})


@dataclass(frozen=True, kw_only=True)
class Adjusted:
    """What comes of the corrections."""

    mixture: LearnedMixture
    """With the corrected weights and the budget that they are for."""
    max_epochs: float
    """inf without a cap."""
    dropped: tuple[str, ...] = ()
    """Sources below `min_weight`."""
    capped: tuple[str, ...] = ()
    """Sources held at `max_epochs`."""


def adjust(mixture: LearnedMixture, adjustment: Adjustment) -> Adjusted:
    """Applies groups, fixed shares, the cap on epochs and the least weight, in this order.

    All are shares of loss tokens. Raises `ConfigError` for names that are not there and for
    corrections that cannot all hold.
    """
    mixture = mixture.for_budget(adjustment.token_budget)
    tokens = {name: size.loss_tokens for name, size in mixture.sizes.items()}
    groups = _members(adjustment.groups, list(tokens))
    weights = _share_groups(mixture.weights, groups, tokens)
    weights, pinned = _fix(weights, adjustment.fixed, groups)
    limit = math.inf if adjustment.max_epochs is None else adjustment.max_epochs
    ceilings = mixture.ceilings("loss_tokens", limit)
    dropped: list[str] = []
    while True:
        weights = _cap(weights, ceilings, pinned, limit)
        # Dropping one source raises the others, which may meet their cap.
        low = [n for n, w in weights.items() if n not in pinned and 0 < w < adjustment.min_weight]
        if not low:
            break
        dropped += low
        weights = _rescale(weights | dict.fromkeys(low, 0.0), pinned)
    return Adjusted(
        mixture=mixture.corrected(weights),
        max_epochs=limit,
        dropped=tuple(dropped),
        capped=tuple(n for n, w in weights.items() if w > 0 and w >= ceilings[n] * (1 - SLACK)),
    )


def _members(groups: Mapping[str, Sequence[str]], names: list[str]) -> dict[str, list[str]]:
    """Sources by group, patterns resolved; a source is in one group at most."""
    found: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for group, patterns in groups.items():
        if group in names:
            raise ConfigError(f"--group {group}: a source has this name; choose another")
        found[group] = []
        for pattern in patterns:
            matches = [pattern] if pattern in names else fnmatch.filter(names, pattern)
            if not matches:
                raise ConfigError(
                    f"--group {group}: {pattern!r} matches no source; there are {', '.join(names)}"
                )
            for name in matches:
                if owner.setdefault(name, group) != group:
                    raise ConfigError(
                        f"--group {group}: {name} is in group {owner[name]} already; "
                        "a source can be in one"
                    )
                if name not in found[group]:
                    found[group].append(name)
    return found


def _share_groups(
    weights: Mapping[str, float], groups: Mapping[str, list[str]], tokens: Mapping[str, int]
) -> dict[str, float]:
    shared = dict(weights)
    for members in groups.values():
        weight = math.fsum(weights[name] for name in members)
        total = sum(tokens[name] for name in members)
        shared |= {name: weight * tokens[name] / total for name in members}
    return shared


def _fix(
    weights: dict[str, float], fixed: Mapping[str, float], groups: Mapping[str, list[str]]
) -> tuple[dict[str, float], set[str]]:
    """Sets shares; a group's is divided among its sources in the ratio that they have."""
    shares: dict[str, float] = {}
    for name, share in fixed.items():
        if name not in weights and name not in groups:
            raise ConfigError(f"--set {name}: no such source; there are {', '.join(weights)}")
        members = groups.get(name, [name])
        total = math.fsum(weights[member] for member in members)
        for member in members:
            if member in shares:
                raise ConfigError(f"--set {name}: {member} is set twice")
            part = weights[member] / total if total else 1 / len(members)
            shares[member] = share * part
    if fixed and len(shares) == len(weights) and abs(math.fsum(shares.values()) - 1) > SLACK:
        raise ConfigError(
            f"--set: all sources are set, and the shares sum to {math.fsum(shares.values()):g}; "
            "they must sum to 1, or leave one unset"
        )
    pinned = set(shares)
    return _rescale(weights | shares, pinned), pinned


def _rescale(weights: Mapping[str, float], pinned: set[str]) -> dict[str, float]:
    """Scales what is not pinned so that the sum is 1."""
    free = math.fsum(w for n, w in weights.items() if n not in pinned)
    room = 1 - math.fsum(w for n, w in weights.items() if n in pinned)
    if room > SLACK and free <= 0:
        raise ConfigError(
            f"no source is left to take the remaining share of {room:.4f}: lower --min-weight, "
            "or set larger shares"
        )
    scale = max(room, 0.0) / free if free > 0 else 0.0
    return {n: w if n in pinned else w * scale for n, w in weights.items()}


def _cap(
    weights: dict[str, float], ceilings: Mapping[str, float], pinned: set[str], limit: float
) -> dict[str, float]:
    """Lowers shares to their ceilings; the others take the excess in proportion."""
    over = [n for n in pinned if weights[n] > ceilings[n] * (1 + SLACK)]
    if over:
        raise ConfigError(
            f"--set {over[0]}={weights[over[0]]:g}: more than --max-epochs {limit:g} allows, "
            f"which is {ceilings[over[0]]:.4f}; set less, or allow more epochs"
        )
    used = [n for n, w in weights.items() if w > 0]
    reach = math.fsum(weights[n] if n in pinned else ceilings[n] for n in used)
    if reach < 1 - SLACK:
        raise ConfigError(
            f"--max-epochs {limit:g}: the sources in use hold {reach:.1%} of the tokens that the "
            "budget needs at that cap; allow more epochs, lower --token-budget or --min-weight"
        )
    held = set(pinned)
    capped = dict(weights)
    while True:
        over = [n for n, w in capped.items() if n not in held and w > ceilings[n]]
        if not over:
            return capped
        held |= set(over)
        capped |= {n: ceilings[n] for n in over}
        if math.fsum(w for n, w in capped.items() if n not in held) <= 0:
            return capped
        capped = _rescale(capped, held)

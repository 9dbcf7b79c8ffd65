"""The keys of `mixture.json`, and how the learned mixture is written into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_fastmix.config import strict_yaml
from megatron_fastmix.result.learned_mixture import (
    LearnedMixture,
    LearnedSource,
    OptimalityResult,
    TargetResult,
)
from megatron_fastmix.result.sizes import Shard

FORMAT = "megatron_fastmix.mixture"
VERSION = 2
UNIT = "share of samples of seq_length tokens"
ANSWER_UNIT = "share of answer tokens"
"""Unit of the weights of answer-only sources."""
LOSS_UNIT = "share of loss tokens"
"""Where sources are text and others answer-only: all tokens of the former count."""
UNITS = (UNIT, ANSWER_UNIT, LOSS_UNIT)

SAME = (
    *("seq_length", "complete", "steps", "outer_steps", "averaging_fraction"),
    *("averaged_outer_steps", "token_budget", "seed", "seeds", "estimator", "optimality"),
    *("cost", "versions", "config"),
)
"""Keys that are fields of `LearnedMixture`."""


@dataclass(frozen=True, kw_only=True)
class SourceKeys:
    """A source's keys, in the order of the file."""

    name: str
    path: str
    """Of the first shard."""
    tokens: int
    documents: int
    initial_weight: float
    final_weight: float
    weight: float
    weight_std: float
    logit: float
    epochs: float
    """In `token_budget` at `weight`."""
    rows: int | None = None
    answer_tokens: int | None = None
    """`loss_tokens` of an answer-only source; null for text."""
    row_weight: float | None = None
    """The share of rows that gives `weight` as the share of loss tokens."""
    loss_tokens: int | None = None
    shards: tuple[Shard, ...] = ()
    advantage: float | None = None
    advantage_standard_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class GroupKeys:
    """A group's keys."""

    name: str
    sources: tuple[str, ...]
    learned: bool
    initial_weight: float
    """The weights are sums of those of its sources."""
    final_weight: float
    weight: float
    weight_std: float
    advantage: float | None = None
    advantage_standard_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class TargetKeys:
    """A target's keys."""

    name: str
    path: str
    tokens: int
    weight: float
    initial_loss: float | None
    final_loss: float | None
    loss_tokens: int | None = None
    rows: int | None = None
    shards: tuple[Shard, ...] = ()
    """Where the target has several datasets."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys of the file whose types `strict_yaml` checks; see `LearnedMixture`."""

    format: str
    version: int
    unit: str
    seq_length: int
    complete: bool
    steps: int
    outer_steps: int
    averaging_fraction: float
    averaged_outer_steps: int
    token_budget: int
    seed: int
    seeds: tuple[int, ...] = ()
    estimator: str
    optimality: OptimalityResult | None = None
    sources: tuple[SourceKeys, ...]
    groups: tuple[GroupKeys, ...] = ()
    targets: tuple[TargetKeys, ...]
    cost: dict[str, float]
    versions: dict[str, str]
    config: dict[str, Any]


def unit_of(mixture: LearnedMixture) -> str:
    """What its weights are shares of, as the file says it."""
    if mixture.mixed:
        return LOSS_UNIT
    return ANSWER_UNIT if mixture.answer_only else UNIT


def values_of(mixture: LearnedMixture) -> dict[str, Any]:
    """All keys and their values, ready for JSON."""
    shares, epochs = mixture.shares("rows"), mixture.epochs
    keys = Keys(
        format=FORMAT,
        version=VERSION,
        unit=unit_of(mixture),
        sources=tuple(
            _source_keys(source, epochs[source.name], shares[source.name])
            for source in mixture.sources
        ),
        groups=_group_keys(mixture),
        targets=tuple(map(_target_keys, mixture.targets)),
        **{key: getattr(mixture, key) for key in SAME},
    )
    values: dict[str, Any] = strict_yaml.to_dict(keys)
    return values


def _source_keys(source: LearnedSource, epochs: float, row_weight: float) -> SourceKeys:
    size = source.size
    return SourceKeys(
        name=source.name,
        path=source.shards[0].path,
        tokens=size.tokens,
        documents=source.documents,
        initial_weight=source.initial_weight,
        final_weight=source.final_weight,
        weight=source.weight,
        weight_std=source.weight_std,
        logit=source.logit,
        epochs=epochs,
        rows=size.rows,
        answer_tokens=size.loss_tokens if size.answer_only else None,
        row_weight=row_weight,
        loss_tokens=size.loss_tokens,
        shards=source.shards,
        advantage=source.advantage,
        advantage_standard_error=source.advantage_standard_error,
    )


def _group_keys(mixture: LearnedMixture) -> tuple[GroupKeys, ...]:
    members = mixture.members
    initial = mixture.group_weights(members, "initial_weight")
    final = mixture.group_weights(members, "final_weight")
    weight = mixture.group_weights(members)
    return tuple(
        GroupKeys(
            **vars(group),
            initial_weight=initial[group.name],
            final_weight=final[group.name],
            weight=weight[group.name],
        )
        for group in mixture.groups
    )


def _target_keys(target: TargetResult) -> TargetKeys:
    return TargetKeys(
        name=target.name,
        path=target.path,
        tokens=target.tokens,
        weight=target.weight,
        initial_loss=target.initial_loss,
        final_loss=target.final_loss,
        loss_tokens=target.size.loss_tokens if target.size else None,
        rows=target.size.rows if target.size else None,
        shards=target.shards,
    )

"""The mixture that one search finds with several seeds: the mean of theirs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Protocol, TypeVar

from megatron_fastmix.result.learned_group import LearnedGroup
from megatron_fastmix.result.learned_mixture import (
    LearnedMixture,
    LearnedSource,
    OptimalityResult,
    TargetResult,
)


class _HasAdvantage(Protocol):
    """A source or a group."""

    @property
    def advantage(self) -> float | None: ...

    @property
    def advantage_standard_error(self) -> float | None: ...


_T = TypeVar("_T", bound=_HasAdvantage)


def average(mixtures: Sequence[LearnedMixture]) -> LearnedMixture:
    """The mean of the mixtures that one search found with several seeds; ± is over the seeds.

    A single one is its own average.
    """
    first = mixtures[0]
    if len(mixtures) == 1:
        return first
    sources = [
        _average_source([mixture.sources[k] for mixture in mixtures])
        for k in range(len(first.sources))
    ]
    total = sum(source.weight for source in sources)
    return dataclasses.replace(
        first,
        seeds=tuple(mixture.seed for mixture in mixtures),
        complete=all(mixture.complete for mixture in mixtures),
        optimality=_worst_verdict(mixtures),
        sources=tuple(dataclasses.replace(s, weight=s.weight / total) for s in sources),
        groups=_average_groups(
            [mixture.groups for mixture in mixtures],
            [list(mixture.group_weights(mixture.members).values()) for mixture in mixtures],
        ),
        targets=tuple(
            _average_target([mixture.targets[v] for mixture in mixtures])
            for v in range(len(first.targets))
        ),
        cost={key: sum(mixture.cost[key] for mixture in mixtures) for key in first.cost},
    )


def _average_source(sources: Sequence[LearnedSource]) -> LearnedSource:
    surest = _surest_advantage(sources) or sources[0]
    return dataclasses.replace(
        sources[0],
        advantage=surest.advantage,
        advantage_standard_error=surest.advantage_standard_error,
        initial_weight=statistics.fmean(source.initial_weight for source in sources),
        final_weight=statistics.fmean(source.final_weight for source in sources),
        weight=statistics.fmean(source.weight for source in sources),
        weight_std=statistics.stdev(source.weight for source in sources),
        logit=statistics.fmean(source.logit for source in sources),
    )


def _worst_verdict(mixtures: Sequence[LearnedMixture]) -> OptimalityResult | None:
    """Of the seed that is farthest from settled; an average does not settle what one has not."""
    known = [(m.seed, m.optimality) for m in mixtures if m.optimality is not None]
    if not known:
        return None
    severity = {"settled": 0, "moving": 1, "not_optimal": 2, "too_short": 3}
    seed, worst = max(known, key=lambda each: severity.get(each[1].status, 0))
    if worst.status == "settled":
        return worst
    return dataclasses.replace(worst, text=f"Seed {seed}: {worst.text}")


def _average_target(targets: Sequence[TargetResult]) -> TargetResult:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    return dataclasses.replace(
        targets[0],
        weight=statistics.fmean(target.weight for target in targets),
        initial_loss=mean([target.initial_loss for target in targets]),
        final_loss=mean([target.final_loss for target in targets]),
    )


def _average_groups(
    runs: Sequence[Sequence[LearnedGroup]], weights: Sequence[Sequence[float]]
) -> tuple[LearnedGroup, ...]:
    """The groups of one search over several seeds; `weights` are theirs, by run and group."""
    return tuple(
        dataclasses.replace(
            each[0],
            weight_std=statistics.stdev(found),
            advantage=surest and surest.advantage,
            advantage_standard_error=surest and surest.advantage_standard_error,
        )
        for each, found in zip(zip(*runs, strict=True), zip(*weights, strict=True), strict=True)
        for surest in (_surest_advantage(each),)
    )


def _surest_advantage(found: Sequence[_T]) -> _T | None:
    """The one whose advantage is the most standard errors from 0; None where none is known."""
    standard_errors = {
        place: abs(each.advantage) / each.advantage_standard_error
        for place, each in enumerate(found)
        if each.advantage is not None and each.advantage_standard_error
    }
    if not standard_errors:
        return None
    return found[max(standard_errors, key=standard_errors.__getitem__)]

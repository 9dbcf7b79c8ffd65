"""Groups of sources in the learned mixture."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


class HasAdvantage(Protocol):
    """A source or a group."""

    @property
    def advantage(self) -> float | None: ...

    @property
    def advantage_standard_error(self) -> float | None: ...


_T = TypeVar("_T", bound=HasAdvantage)


@dataclass(frozen=True, kw_only=True)
class LearnedGroup:
    """One group; its weights are the sums of those of its sources, `LearnedMixture.group_weights`.

    What does not follow from the sources is kept: how far the sum moved, and its advantage.
    """

    name: str
    sources: tuple[str, ...]
    """Names of its sources."""
    learned: bool
    """Whether the group had one logit, and the shares inside it were fixed."""
    weight_std: float
    """As a source's: over the averaged part of the run, or over the seeds."""
    advantage: float | None = None
    """A_g = Σ s_k·⟨v, ∇L_k⟩ − Σ α_i⟨v, ∇L_i⟩ with the shares s inside the group, over the groups
    inside their bounds, its mean over the averaged part of the run; None where it is not known. Of
    several seeds as a source's."""
    advantage_standard_error: float | None = None
    """Of that mean."""


def average_groups(
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
        for surest in (surest_advantage(each),)
    )


def surest_advantage(found: Sequence[_T]) -> _T | None:
    """The one whose advantage is the most standard errors from 0; None where none is known."""
    standard_errors = {
        place: abs(each.advantage) / each.advantage_standard_error
        for place, each in enumerate(found)
        if each.advantage is not None and each.advantage_standard_error
    }
    if not standard_errors:
        return None
    return found[max(standard_errors, key=standard_errors.__getitem__)]

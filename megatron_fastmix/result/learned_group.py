"""Groups of sources in the learned mixture."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


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
    """A_g = Σ s_k·⟨v, ∇L_k⟩ − Σ α_i⟨v, ∇L_i⟩ with the shares s inside the group, its mean over the
    averaged part of the run; None where it is not known. Of several seeds as a source's."""
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
            **dict(zip(_ADVANTAGE, _surest(each), strict=True)),
        )
        for each, found in zip(zip(*runs, strict=True), zip(*weights, strict=True), strict=True)
    )


_ADVANTAGE = ("advantage", "advantage_standard_error")


def _surest(groups: Sequence[LearnedGroup]) -> tuple[float | None, float | None]:
    """That which is the most standard errors from 0."""
    known = [
        (group.advantage, group.advantage_standard_error)
        for group in groups
        if group.advantage is not None and group.advantage_standard_error
    ]
    return max(known, key=lambda pair: abs(pair[0]) / pair[1], default=(None, None))

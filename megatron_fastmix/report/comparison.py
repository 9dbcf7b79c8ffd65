"""Whether two learned mixtures differ by more than the seeds move them.

Per source, z = (b − a) / √(e_a² + e_b²), with e the standard error s/√n of a weight over the n
seeds that were averaged.

Over all sources, R = √(Σ (b − a)² / Σ (e_a² + e_b²)): the distance between the mixtures over the
distance that their standard errors lead one to expect. The mixtures differ where R exceeds the
two-sided 95 % point of Student's t with the seeds' degrees of freedom. A sum of z² would let a
source of weight 0.001 with a spread of 0.0001 decide.

A mixture of one search has no standard error: its iterates follow each other closely, and their
spread says nothing of where another seed would end. Then nobody can tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from megatron_fastmix.errors import DataError
from megatron_fastmix.result.learned_mixture import LearnedMixture

Verdict = Literal["differ", "agree", "cannot tell"]
STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)
"""Two-sided 95 % points of Student's t for 1, 2, … degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One source."""

    name: str
    first: float
    second: float
    spreads: tuple[float, float]
    """`weight_std` of both: over seeds, or over the averaged part of one run."""
    standard_error: float | None
    """√(e_a² + e_b²); None where one of the mixtures has no seeds."""

    @property
    def change(self) -> float:
        """Second weight less first."""
        return self.second - self.first

    @property
    def z(self) -> float | None:
        """The change over its standard error; 0 where both are 0, infinite where only that is."""
        if self.standard_error is None:
            return None
        if self.standard_error == 0:
            return 0.0 if self.change == 0 else math.copysign(math.inf, self.change)
        return self.change / self.standard_error


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two mixtures of the same sources."""

    sources: tuple[Difference, ...]
    """Largest change first."""
    threshold: float | None
    """What |z| and R must exceed; None where one of the mixtures has no seeds."""

    @property
    def distance(self) -> float:
        """Total variation: the share of loss tokens that would come from another source."""
        return math.fsum(abs(source.change) for source in self.sources) / 2

    @property
    def ratio(self) -> float | None:
        """R of the module's docstring."""
        errors = [s.standard_error for s in self.sources if s.standard_error is not None]
        if len(errors) < len(self.sources):
            return None
        moved = math.sqrt(math.fsum(source.change**2 for source in self.sources))
        expected = math.sqrt(math.fsum(error**2 for error in errors))
        if expected == 0:
            return 0.0 if moved == 0 else math.inf
        return moved / expected

    @property
    def verdict(self) -> Verdict:
        """Whether the mixtures differ beyond their standard errors."""
        if self.ratio is None or self.threshold is None:
            return "cannot tell"
        return "differ" if self.ratio > self.threshold else "agree"


def compare(first: LearnedMixture, second: LearnedMixture) -> Comparison:
    """Compares two mixtures. Raises `DataError` where their sources or units are not the same."""
    one = {source.name: source for source in first.sources}
    two = {source.name: source for source in second.sources}
    if one.keys() != two.keys():
        alone = sorted(one.keys() ^ two.keys())
        raise DataError(
            f"the mixtures are of other sources: {', '.join(alone)} is in one alone; compare "
            "searches of the same sources"
        )
    if first.answer_only != second.answer_only:
        raise DataError(
            f"the weights are {first.weights_are} in one mixture and {second.weights_are} in the "
            "other, which cannot be compared"
        )
    differences = [
        Difference(
            name=name,
            first=one[name].weight,
            second=two[name].weight,
            spreads=(one[name].weight_std, two[name].weight_std),
            standard_error=_together(
                first.standard_error(one[name]), second.standard_error(two[name])
            ),
        )
        for name in one
    ]
    differences.sort(key=lambda difference: -abs(difference.change))
    return Comparison(sources=tuple(differences), threshold=_threshold(first, second))


def _together(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else math.hypot(first, second)


def _threshold(first: LearnedMixture, second: LearnedMixture) -> float | None:
    if min(len(first.seeds), len(second.seeds)) < 2:
        return None
    freedom = len(first.seeds) + len(second.seeds) - 2
    # Beyond the table the point is at most 0.22 lower.
    return STUDENT_95[freedom - 1] if freedom <= len(STUDENT_95) else STUDENT_95[-1]

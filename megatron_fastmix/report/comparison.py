"""Whether two learned mixtures differ by more than the seeds move them.

Per source, z = (b − a) / √(e_a² + e_b²), with e the standard error s/√n of a weight over the n
seeds that were averaged, is held against the two-sided 95 % point of Student's t with the degrees
of freedom of Welch and Satterthwaite (Satterthwaite, Biometrics Bulletin 2, 1946).

Over all sources, R = √(Σ (b − a)² / Σ (e_a² + e_b²)): the distance between the mixtures over the
distance that their standard errors lead one to expect. The mixtures differ where R² exceeds the
95 % point of F with ν₁ and ν₂ degrees of freedom. A sum of z² would let a source of weight 0.001
with a spread of 0.0001 decide.

ν₁ and ν₂ are approximations (Box, Annals of Mathematical Statistics 25, 1954). Exactly,
ν₁ = (tr C)² / tr C² with C the covariance of the differences, of which few seeds tell no more than
the variances c_k on its diagonal. Were the sources independent, that would be (Σ c)² / Σ c²; but
weights add up to 1, which takes one degree: ν₁ = max(1, (Σ c)² / Σ c² − 1), exact for two sources,
for equal variances with equal correlations, and for two sources that trade with each other beside
others at rest. ν₂ is Satterthwaite's for the sum of both mixtures' Σ e², each of which has the
degrees (n − 1)·ν₁ of its own variances. With two sources all this is Welch's t. In simulations of
equal mixtures with three seeds or more each, 1 to 7 in 100 were called different; where one mixture
has two seeds and the other ten it was 11, since two seeds hardly know their own spread.

A mixture of one search has no standard error: its iterates follow each other closely, and their
spread says nothing of where another seed would end. Then nobody can tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_fastmix.errors import DataError
from megatron_fastmix.report.quantiles import f_95, student_95
from megatron_fastmix.result.learned_mixture import LearnedMixture

Verdict = Literal["differ", "agree", "cannot tell"]


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
    bound: float | None
    """What |z| must exceed; None where one of the mixtures has no seeds."""

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
    """What R must exceed; None where one of the mixtures has no seeds."""

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
    _check_units(first, second)
    freedoms = len(first.seeds) - 1, len(second.seeds) - 1
    differences, squares = [], []
    for name in one:
        pair = first.standard_error(one[name]), second.standard_error(two[name])
        error = bound = None
        if pair[0] is not None and pair[1] is not None:
            squares.append((pair[0] ** 2, pair[1] ** 2))
            error = math.hypot(pair[0], pair[1])
            bound = student_95(_satterthwaite(squares[-1], freedoms))
        differences.append(
            Difference(
                name=name,
                first=one[name].weight,
                second=two[name].weight,
                spreads=(one[name].weight_std, two[name].weight_std),
                standard_error=error,
                bound=bound,
            )
        )
    threshold = None
    if squares:
        apart = [[pair[k] for pair in squares] for k in (0, 1)]
        sums = math.fsum(apart[0]), math.fsum(apart[1])
        denominator = _satterthwaite(
            sums, (freedoms[0] * _box(apart[0]), freedoms[1] * _box(apart[1]))
        )
        threshold = math.sqrt(f_95(_box([sum(pair) for pair in squares]), denominator))
    differences.sort(key=lambda difference: -abs(difference.change))
    return Comparison(sources=tuple(differences), threshold=threshold)


def _check_units(first: LearnedMixture, second: LearnedMixture) -> None:
    if first.weights_are != second.weights_are:
        raise DataError(
            f"the weights are {first.weights_are} in one mixture and {second.weights_are} in the "
            "other, which cannot be compared"
        )
    for name, size in first.sizes.items():
        if size.answer_only != second.sizes[name].answer_only:
            raise DataError(
                f"{name} is answer-only rows in one mixture and text in the other, so that its "
                "weights cannot be compared"
            )


def _satterthwaite(squares: tuple[float, float], freedoms: tuple[float, float]) -> float:
    """Degrees of freedom of the sum of two estimates of variances, of which each has its own."""
    parts = squares[0] ** 2 / freedoms[0] + squares[1] ** 2 / freedoms[1]
    return sum(squares) ** 2 / parts if parts else sum(freedoms)


def _box(variances: Sequence[float]) -> float:
    """ν₁ of the module's docstring."""
    squares = math.fsum(variance**2 for variance in variances)
    return max(1.0, math.fsum(variances) ** 2 / squares - 1) if squares else 1.0

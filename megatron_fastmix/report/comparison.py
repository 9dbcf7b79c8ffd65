"""Whether two learned mixtures differ by more than their own spread.

Per source, z = (b − a) / √(e_a² + e_b²), with e the uncertainty of a weight: its standard deviation
over the averaged part of the run, or, where n seeds were averaged, the standard error s/√n. The
iterates of one run follow each other closely, so their number does not divide the deviation.

Over all sources, R = √(Σ (b − a)² / Σ (e_a² + e_b²)): the distance between the mixtures over the
distance that their uncertainties lead one to expect. The mixtures differ where R exceeds the
two-sided 95 % point of Student's t with the seeds' degrees of freedom, or 2 without seeds. A sum
of z² would let a source of weight 0.001 with a spread of 0.0001 decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_fastmix.errors import DataError
from megatron_fastmix.result.mixture_file import MixtureFile

WITHOUT_SEEDS = 2.0
STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)
"""Two-sided 95 % points of Student's t for 1, 2, … degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One source."""

    name: str
    first: float
    second: float
    uncertainty: float
    """√(e_a² + e_b²)"""

    @property
    def change(self) -> float:
        """Second weight less first."""
        return self.second - self.first

    @property
    def z(self) -> float:
        """The change over its uncertainty; 0 where both are 0, infinite where only that is."""
        if self.uncertainty == 0:
            return 0.0 if self.change == 0 else math.copysign(math.inf, self.change)
        return self.change / self.uncertainty


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two mixtures of the same sources."""

    sources: tuple[Difference, ...]
    """Largest change first."""
    threshold: float
    """What |z| and R must exceed."""

    @property
    def distance(self) -> float:
        """Total variation: the share of samples that would come from another source."""
        return math.fsum(abs(source.change) for source in self.sources) / 2

    @property
    def ratio(self) -> float:
        """R of the module's docstring."""
        moved = math.sqrt(math.fsum(source.change**2 for source in self.sources))
        expected = math.sqrt(math.fsum(source.uncertainty**2 for source in self.sources))
        if expected == 0:
            return 0.0 if moved == 0 else math.inf
        return moved / expected

    @property
    def differ(self) -> bool:
        """Whether the mixtures differ beyond their spread."""
        return self.ratio > self.threshold


def compare(first: MixtureFile, second: MixtureFile) -> Comparison:
    """Compares two mixtures. Raises `DataError` where their sources are not the same."""
    one = {source.name: source for source in first.sources}
    two = {source.name: source for source in second.sources}
    if one.keys() != two.keys():
        alone = sorted(one.keys() ^ two.keys())
        raise DataError(
            f"the mixtures are of other sources: {', '.join(alone)} is in one alone; compare "
            "searches of the same sources"
        )
    differences = [
        Difference(
            name=name,
            first=one[name].weight,
            second=two[name].weight,
            uncertainty=math.hypot(
                _uncertainty(first, one[name].weight_std),
                _uncertainty(second, two[name].weight_std),
            ),
        )
        for name in one
    ]
    differences.sort(key=lambda difference: -abs(difference.change))
    return Comparison(sources=tuple(differences), threshold=_threshold(first, second))


def _uncertainty(mixture: MixtureFile, spread: float) -> float:
    return spread / math.sqrt(len(mixture.seeds)) if mixture.seeds else spread


def _threshold(first: MixtureFile, second: MixtureFile) -> float:
    freedom = sum(max(0, len(mixture.seeds) - 1) for mixture in (first, second))
    if freedom == 0:
        return WITHOUT_SEEDS
    # Beyond the table the point is at most 0.16 above 2, as for a spread without seeds.
    return STUDENT_95[freedom - 1] if freedom <= len(STUDENT_95) else STUDENT_95[-1]

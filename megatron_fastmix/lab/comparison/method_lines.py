"""What the rows of a scenario say about its methods, a line for each; pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from megatron_fastmix.lab.baselines.registry import FASTMIX, proxies_of
from megatron_fastmix.lab.comparison.rows import Row, SearchRow
from megatron_fastmix.lab.comparison.scenario import Scenario
from megatron_fastmix.lab.comparison.statistics import standard_deviation, total_variation
from megatron_fastmix.report.quantiles import student_95

UNIFORM = "uniform"


@dataclass(frozen=True, kw_only=True)
class MethodLine:
    """One method in one scenario."""

    method: str
    losses: dict[int, float]
    """Target loss by seed, nats per token."""
    flops: float
    """Mean cost of a search with everything: trainings, evaluations, outer steps."""
    tokens: float | None
    """Mean tokens of a search's trainings; None where its proxy is another than FastMix's, so that
    tokens are no measure of training FLOPs."""
    seconds: float
    """Mean wall time of a search, in one process."""
    weights: dict[str, float]
    """Mean over the seeds."""
    weights_by_seed: dict[int, dict[str, float]] = field(default_factory=dict)
    proxies: int | None = None
    """Proxies of a search, each on a mixture of its own; None for methods that are not so."""
    made_with: tuple[Mapping[str, str], ...] = ()
    """Versions of packages, of each row."""

    @property
    def loss(self) -> float:
        return fmean(self.losses.values())

    @property
    def deviation(self) -> float | None:
        """Over the seeds of search and target model together; None for a single one."""
        return standard_deviation(list(self.losses.values()))

    def distances(self, other: MethodLine) -> list[float]:
        """For each seed the mean distance of its mixture from those of the other seeds of `other`,
        so that a method's distance from itself is that between its seeds."""
        found = []
        for seed, weights in self.weights_by_seed.items():
            others = [w for each, w in other.weights_by_seed.items() if each != seed]
            if others:
                found.append(fmean([total_variation(weights, each) for each in others]))
        return found


def aggregated(scenario: Scenario, row: Row) -> float:
    """The row's target loss, by the objective of the search: the weighted mean of the tests, or
    the largest excess over a test's `reference_loss`."""
    if not scenario.search.objective.is_mean:
        references = {test.name: test.reference_loss for test in scenario.compare.tests}
        return max(loss - references[name] for name, loss in row.losses.items())
    return row.loss


def make_lines(
    scenario: Scenario,
    searches: Mapping[str, Sequence[SearchRow]],
    trainings: Mapping[str, Sequence[Row]],
) -> list[MethodLine]:
    """A line for each method that has rows, the best first: by what it gains over the uniform
    mixture, seed by seed, or by its loss where there is no uniform one."""
    lines = [
        MethodLine(
            method=method,
            losses={row.seed: aggregated(scenario, row) for row in trainings[method]},
            flops=fmean([row.flops for row in found]),
            tokens=(
                fmean([row.tokens for row in found])
                if scenario.searches[method].proxy == scenario.searches[FASTMIX].proxy
                else None
            ),
            seconds=fmean([row.wall_seconds for row in found]),
            weights={
                source: fmean([row.weights[source] for row in found]) for source in found[0].weights
            },
            weights_by_seed={row.seed: row.weights for row in found},
            made_with=(
                *(row.versions for row in found),
                *(row.versions for row in trainings[method]),
            ),
            proxies=proxies_of(method, scenario.baselines),
        )
        for method, found in searches.items()
        if trainings.get(method)
    ]
    return sorted(lines, key=lambda line: (-(gain(line, lines) or 0.0), line.loss))


def gain(line: MethodLine, lines: Sequence[MethodLine]) -> float | None:
    """By how much a method's loss is below the uniform mixture's: FastMix's gain seed by seed, less
    what the method is behind FastMix, so that one with fewer seeds is not compared with others'
    seeds. Without FastMix over the seeds that the two have; None without a common seed."""
    by_method = {each.method: each for each in lines}
    base = by_method.get(UNIFORM)
    if base is None:
        return None
    ours = by_method.get(FASTMIX, base)
    found = behind(base, ours)[0] - behind(line, ours)[0]
    return None if math.isnan(found) else found


def gap(lines: Sequence[MethodLine]) -> float | None:
    """From uniform to the method that gains most; None where none does."""
    return max((gain(line, lines) or 0.0 for line in lines), default=0.0) or None


def closed(line: MethodLine, lines: Sequence[MethodLine]) -> float | None:
    """Share of `gap` that `line` closes; None without a gap."""
    gained, whole = gain(line, lines), gap(lines)
    return None if gained is None or whole is None else gained / whole


def behind(line: MethodLine, ours: MethodLine) -> tuple[float, float | None]:
    """By how much a method's loss exceeds FastMix's, and the standard error of that, over the seeds
    that both have: one seed is the same initial weights for every method, so that much of the
    spread of the two cancels. NaN without a common seed."""
    common = line.losses.keys() & ours.losses.keys()
    differences = [line.losses[seed] - ours.losses[seed] for seed in sorted(common)]
    if not differences:
        return float("nan"), None
    deviation = standard_deviation(differences)
    return fmean(differences), deviation and deviation / len(differences) ** 0.5


def beyond_error(line: MethodLine, ours: MethodLine) -> bool | None:
    """Whether the difference of `behind` is beyond its 95 % interval; None without an error."""
    difference, error = behind(line, ours)
    if error is None:
        return None
    return is_beyond(difference, error, len(line.losses.keys() & ours.losses.keys()) - 1)


def is_beyond(difference: float, error: float, freedom: int) -> bool:
    """Whether a difference is outside its 95 % interval by Student's t of so many degrees."""
    return abs(difference) > student_95(freedom) * error


def judge(lines: Sequence[MethodLine]) -> tuple[float, float | None] | None:
    """Standard deviation over seeds of target models under the uniform mixture, and the same as a
    share of the gap from uniform to the best, None without a gap; None without two seeds."""
    base = {line.method: line for line in lines}.get(UNIFORM)
    if base is None or base.deviation is None:
        return None
    whole = gap(lines)
    return base.deviation, base.deviation / whole if whole else None


def training_ratio(line: MethodLine, ours: MethodLine) -> float | None:
    """FLOPs of a method's trainings over those of FastMix's; None where proxies differ."""
    if line.tokens is None or not ours.tokens:
        return None
    return line.tokens / ours.tokens


def equal_lengths(line: MethodLine, ours: MethodLine) -> bool:
    """Whether each proxy of a method that trains many reads as many tokens as ours."""
    return bool(line.proxies and line.tokens and line.tokens == line.proxies * (ours.tokens or 0))

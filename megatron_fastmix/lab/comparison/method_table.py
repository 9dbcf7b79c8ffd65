"""What the rows of a scenario say about its methods; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from megatron_fastmix.lab.baselines.registry import FASTMIX
from megatron_fastmix.lab.comparison.rows import Row, SearchRow
from megatron_fastmix.lab.comparison.scenario import Scenario
from megatron_fastmix.lab.comparison.statistics import standard_deviation
from megatron_fastmix.lab.measurements import Measurement
from megatron_fastmix.text_table import align

UNIFORM = "uniform"
GAP_REACH = 0.9
"""Share of the gap from uniform to the best known mixture that FastMix is to close."""
COST_REACH = {"regmix": 50.0, "doremi": 5.0}
"""How many times FastMix's FLOPs a method is to cost at least."""


@dataclass(frozen=True, kw_only=True)
class MethodLine:
    """One method in one scenario."""

    method: str
    losses: dict[int, float]
    """Target loss by seed, nats per token."""
    flops: float
    """Mean cost of a search."""
    seconds: float
    """Mean wall time of a search, in one process."""
    weights: dict[str, float]
    """Mean over the seeds."""

    @property
    def loss(self) -> float:
        return fmean(self.losses.values())

    @property
    def deviation(self) -> float | None:
        """Over the seeds of search and target model together; None for a single one."""
        return standard_deviation(list(self.losses.values()))


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
    """A line for each method that has rows, the best first."""
    lines = [
        MethodLine(
            method=method,
            losses={row.seed: aggregated(scenario, row) for row in trainings[method]},
            flops=fmean([row.flops for row in found]),
            seconds=fmean([row.wall_seconds for row in found]),
            weights={
                source: fmean([row.weights[source] for row in found]) for source in found[0].weights
            },
        )
        for method, found in searches.items()
        if trainings.get(method)
    ]
    return sorted(lines, key=lambda line: line.loss)


def closed(line: MethodLine, lines: Sequence[MethodLine]) -> float | None:
    """Share of the gap from uniform to the best method that `line` closes; None without a gap."""
    base = {each.method: each.loss for each in lines}.get(UNIFORM)
    if base is None or base <= lines[0].loss:
        return None
    return (base - line.loss) / (base - lines[0].loss)


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


def text(lines: Sequence[MethodLine]) -> str:
    """The table of a scenario."""
    ours = next((line for line in lines if line.method == FASTMIX), None)
    shown = []
    for line in lines:
        share = closed(line, lines)
        heaviest = sorted(line.weights.items(), key=lambda item: -item[1])[:3]
        shown.append(
            [
                line.method,
                f"{line.loss:.4f}",
                "" if line.deviation is None else f"± {line.deviation:.4f}",
                str(len(line.losses)),
                "" if share is None else f"{share:.0%}",
                *_behind(line, ours),
                f"{line.flops:.2g}",
                "" if ours is None else f"{line.flops / ours.flops:.3g}",
                "" if ours is None else f"{line.seconds / ours.seconds:.3g}",
                ", ".join(f"{name} {weight:.2f}" for name, weight in heaviest),
            ]
        )
    header = ["method", "loss", "sd", "seeds", "gap closed", "behind FastMix", "se"]
    header += ["FLOPs", "x FastMix", "wall x", "mean"]
    return align(header, shown, left=(0, len(header) - 1))


def _behind(line: MethodLine, ours: MethodLine | None) -> tuple[str, str]:
    if ours is None or line is ours:
        return "", ""
    difference, error = behind(line, ours)
    return f"{difference:+.4f}", "" if error is None else f"± {error:.4f}"


def measurements(scenario: str, lines: Sequence[MethodLine]) -> list[Measurement]:
    """The scenario's measurements with what FastMix is to reach."""
    found = [
        Measurement(
            figure=f"{scenario}: {line.method}, target loss", value=line.loss, unit="nats per token"
        )
        for line in lines
    ]
    ours = {line.method: line for line in lines}.get(FASTMIX)
    if ours is None:
        return found
    if ours.deviation:
        found.append(
            Measurement(
                figure=f"{scenario}: fastmix behind the best",
                value=(ours.loss - lines[0].loss) / ours.deviation,
                reach=1.0,
                unit="sd of fastmix",
            )
        )
    share = closed(ours, lines)
    if share is not None:
        found.append(
            Measurement(
                figure=f"{scenario}: gap from uniform to the best that fastmix closes",
                value=share,
                reach=GAP_REACH,
                better="higher",
                unit="ratio",
            )
        )
    for line in lines:
        if line is not ours and line.flops:
            found.append(
                Measurement(
                    figure=f"{scenario}: search FLOPs, {line.method} / fastmix",
                    value=line.flops / ours.flops,
                    reach=COST_REACH.get(line.method),
                    better="higher",
                    unit="ratio",
                )
            )
    return found

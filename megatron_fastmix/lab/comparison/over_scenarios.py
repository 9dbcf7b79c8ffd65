"""What several scenarios together say about their methods; pure functions.

A scenario's difference between two methods may be within its error, and that of all beyond. Seeds
are independent, scenarios, which share seeds, text and even rows, are not: a seed's differences are
averaged first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from megatron_fastmix.lab.baselines.registry import FASTMIX
from megatron_fastmix.lab.comparison.method_lines import MethodLine, is_beyond
from megatron_fastmix.lab.comparison.method_table import difference_rows
from megatron_fastmix.lab.comparison.statistics import standard_deviation
from megatron_fastmix.lab.measurements import Measurement
from megatron_fastmix.text_table import align


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of a method's target loss from another's, in nats per token."""

    method: str
    mean: float
    """Over the seeds, of a seed's mean over the scenarios."""
    error: float
    """Standard error of that."""
    beyond: bool
    """Whether it is outside its 95 % interval."""


def differences(
    tables: Mapping[str, Sequence[MethodLine]], against: str = FASTMIX
) -> list[Difference]:
    """Of every method from `against`, where all scenarios have both for two seeds or more, the best
    first."""
    lines = {name: {line.method: line for line in table} for name, table in tables.items()}
    methods = set.intersection(*(set(each) for each in lines.values()))
    if against not in methods:
        return []
    found = []
    for method in methods - {against}:
        pairs = [(each[method].losses, each[against].losses) for each in lines.values()]
        seeds = sorted(set.intersection(*(one.keys() & two.keys() for one, two in pairs)))
        of_seeds = [fmean([one[seed] - two[seed] for one, two in pairs]) for seed in seeds]
        deviation = standard_deviation(of_seeds)
        if deviation is None:
            continue
        mean, error = fmean(of_seeds), deviation / len(seeds) ** 0.5
        beyond = is_beyond(mean, error, len(seeds) - 1)
        found.append(Difference(method=method, mean=mean, error=error, beyond=beyond))
    return sorted(found, key=lambda each: each.mean)


def text(found: Sequence[Difference], scenarios: Sequence[str], against: str = FASTMIX) -> str:
    """Their table, below the names of the scenarios."""
    rows = [
        [
            each.method,
            f"{each.mean:+.4f}",
            f"± {each.error:.4f}",
            "no" if not each.beyond else "worse" if each.mean > 0 else "better",
        ]
        for each in found
    ]
    name = "FastMix" if against == FASTMIX else against
    table = align(["method", f"behind {name}", "se", "beyond it"], rows, left=(0, 3))
    return f"{', '.join(scenarios)}: mean of their differences, seed by seed:\n{table}"


def measurements(
    found: Sequence[Difference], scenarios: int, against: str = FASTMIX
) -> list[Measurement]:
    """The same as measurements."""
    rows: list[Measurement] = []
    for each in found:
        what = f"all {scenarios} scenarios: {each.method} behind {against}, seed by seed"
        rows += difference_rows(what, each.mean, each.error)
    return rows

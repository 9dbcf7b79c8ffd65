"""What several scenarios together say about their methods; pure functions.

A scenario's difference between two methods may be within its error, and that of all of them beyond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from megatron_fastmix.lab.baselines.registry import FASTMIX
from megatron_fastmix.lab.comparison.method_table import MethodLine, behind, is_beyond
from megatron_fastmix.lab.measurements import Measurement
from megatron_fastmix.text_table import align


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of a method's target loss from another's, in nats per token."""

    method: str
    mean: float
    """Of the scenarios' means over seeds, each counting alike."""
    error: float
    """Standard error of that, seeds and scenarios being independent."""
    beyond: bool
    """Whether it is outside its 95 % interval."""


def differences(
    tables: Mapping[str, Sequence[MethodLine]], against: str = FASTMIX
) -> list[Difference]:
    """Of every method from `against`, where all scenarios have both, the best first."""
    lines = {name: {line.method: line for line in table} for name, table in tables.items()}
    methods = set.intersection(*(set(each) for each in lines.values()))
    if against not in methods:
        return []
    found = []
    for method in methods - {against}:
        pairs = [behind(each[method], each[against]) for each in lines.values()]
        errors = [error for _, error in pairs if error is not None]
        if len(errors) < len(pairs):
            continue
        mean = fmean([value for value, _ in pairs])
        error = sum(each**2 for each in errors) ** 0.5 / len(errors)
        seeds = [
            len(each[method].losses.keys() & each[against].losses.keys()) for each in lines.values()
        ]
        beyond = is_beyond(mean, error, _freedom(errors, seeds))
        found.append(Difference(method=method, mean=mean, error=error, beyond=beyond))
    return sorted(found, key=lambda each: each.mean)


def _freedom(errors: Sequence[float], seeds: Sequence[int]) -> int:
    """Degrees of freedom of the root of the summed squares of `errors`, which may differ much
    (Satterthwaite, 1946)."""
    fourth = sum(error**4 / (count - 1) for error, count in zip(errors, seeds, strict=True))
    return int(sum(error**2 for error in errors) ** 2 / fourth) if fourth else sum(seeds)


def text(found: Sequence[Difference], scenarios: int, against: str = FASTMIX) -> str:
    """Their table."""
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
    return f"all {scenarios} scenarios, mean of their differences seed by seed:\n{table}"


def measurements(
    found: Sequence[Difference], scenarios: int, against: str = FASTMIX
) -> list[Measurement]:
    """The same as measurements."""
    rows = []
    for each in found:
        what = f"all {scenarios} scenarios: {each.method} behind {against}, seed by seed"
        rows.append(Measurement(figure=what, value=each.mean, unit="nats per token"))
        what = f"{what}, standard error"
        rows.append(Measurement(figure=what, value=each.error, unit="nats per token"))
    return rows

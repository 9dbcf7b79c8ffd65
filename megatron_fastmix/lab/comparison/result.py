"""A comparison of mixtures as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from megatron_fastmix.lab.comparison.rows import Row
from megatron_fastmix.lab.comparison.statistics import (
    by_mixture,
    evaluation_error,
    standard_deviation,
)
from megatron_fastmix.lab.measurements import Measurement
from megatron_fastmix.text_table import align


def loss_table(rows: Sequence[Row]) -> str:
    """The mixtures sorted by target loss, best first; several learned ones also as one line.

    `exact` is the share of the test's answers that greedy decoding gives, for answer-only tests."""
    groups = by_mixture(rows)
    learned = [row for row in rows if row.kind == "learned"]
    if len(by_mixture(rows, "learned")) > 1:
        groups["learned (all)"] = learned
    base = fmean([row.loss for row in learned]) if learned else None
    exact = any(row.exact_match for row in rows)
    lines = []
    for name, group in sorted(groups.items(), key=lambda item: fmean([r.loss for r in item[1]])):
        losses = [row.loss for row in group]
        deviation = standard_deviation(losses)
        mixed = len({tuple(row.weights.items()) for row in group}) > 1
        lines.append(
            [
                name,
                f"{fmean(losses):.4f}",
                "" if deviation is None else f"± {deviation:.4f}",
                str(len(losses)),
                "" if base is None else f"{fmean(losses) - base:+.4f}",
                *(f"{_exact(group):.1%}" for _ in range(exact)),
                "" if mixed else _leading(group[0].weights),
            ]
        )
    header = ["mixture", "loss", "sd", "runs", "vs learned", *["exact"] * exact, "weights"]
    return align(header, lines, left=(0, len(header) - 1))


def _exact(rows: Sequence[Row]) -> float:
    return fmean([share for row in rows for share in row.exact_match.values()])


def error_line(shares: Mapping[str, float], rows: Sequence[Row]) -> str:
    """How exactly the finite test sets, of `shares` in the loss, let the losses be known."""
    alone = max(evaluation_error(shares, [row]) for row in rows)
    text = f"standard error from the finite test set: at most {alone:.4f} for a loss"
    learned = [row for row in rows if row.kind == "learned"]
    others = [group for group in by_mixture(rows).values() if group[0].kind != "learned"]
    if learned and others:
        against = max(evaluation_error(shares, group, learned) for group in others)
        text += f", {against:.4f} for a difference from learned (same samples in every row)"
    return text


def measurement_lines(measurements: Sequence[Measurement]) -> str:
    """Each figure on a line, with its aim and whether it was met."""
    lines = []
    for measurement in measurements:
        value = "unknown" if measurement.value is None else f"{measurement.value:.4g}"
        line = f"{measurement.figure}: {value} ({measurement.unit})"
        if measurement.reach is not None:
            sign = "≤" if measurement.better == "lower" else "≥"
            met = {True: "reached", False: "NOT reached", None: "undecided"}[measurement.reached]
            line += f", aim {sign} {measurement.reach:g}: {met}"
        lines.append(line)
    return "\n".join(lines)


def versions(of_rows: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Version of each package, from those of rows; of several, all that rows were made with."""
    found: dict[str, set[str]] = {}
    for each in of_rows:
        for name, number in each.items():
            found.setdefault(name, set()).add(number)
    return {name: ", ".join(sorted(numbers)) for name, numbers in found.items()}


def _leading(weights: dict[str, str]) -> str:
    """The heaviest three sources, such as `code 0.62, math 0.21, web 0.09`."""
    heaviest = sorted(weights, key=lambda name: -float(weights[name]))[:3]
    return ", ".join(f"{name} {float(weights[name]):.2f}" for name in heaviest)

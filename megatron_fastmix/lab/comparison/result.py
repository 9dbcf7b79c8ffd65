"""A comparison as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.lab.comparison.rows import Row
from megatron_fastmix.lab.comparison.statistics import (
    Figure,
    by_mixture,
    evaluation_error,
    mean,
    standard_deviation,
)
from megatron_fastmix.processes import available_cores
from megatron_fastmix.text_table import align


def loss_table(rows: Sequence[Row]) -> str:
    """The mixtures sorted by target loss, best first; several learned ones also as one line.

    `exact` is the share of the test's answers that greedy decoding gives, for answer-only tests."""
    groups = by_mixture(rows)
    learned = [row for row in rows if row.kind == "learned"]
    if len(by_mixture(rows, "learned")) > 1:
        groups["learned (all)"] = learned
    base = mean([row.loss for row in learned]) if learned else None
    exact = any(row.exact_match for row in rows)
    lines = []
    for name, group in sorted(groups.items(), key=lambda item: mean([r.loss for r in item[1]])):
        losses = [row.loss for row in group]
        deviation = standard_deviation(losses)
        mixed = len({tuple(row.weights.items()) for row in group}) > 1
        lines.append(
            [
                name,
                f"{mean(losses):.4f}",
                "" if deviation is None else f"± {deviation:.4f}",
                str(len(losses)),
                "" if base is None else f"{mean(losses) - base:+.4f}",
                *(f"{_exact(group):.1%}" for _ in range(exact)),
                "" if mixed else _leading(group[0].weights),
            ]
        )
    header = ["mixture", "loss", "sd", "runs", "vs learned", *["exact"] * exact, "weights"]
    width = max(len(line[-1]) for line in (header, *lines))
    for line in (header, *lines):
        line[-1] = line[-1].ljust(width)  # text reads better from the left
    return align(header, lines)


def _exact(rows: Sequence[Row]) -> float:
    return mean([share for row in rows for share in row.exact_match.values()])


def error_line(rows: Sequence[Row]) -> str:
    """How exactly the finite test sets let the losses be known."""
    alone = max(evaluation_error([row]) for row in rows)
    text = f"standard error from the finite test set: at most {alone:.4f} for a loss"
    learned = [row for row in rows if row.kind == "learned"]
    others = [group for group in by_mixture(rows).values() if group[0].kind != "learned"]
    if learned and others:
        against = max(evaluation_error(group, learned) for group in others)
        text += f", {against:.4f} for a difference from learned (same samples in every row)"
    return text


def figure_lines(figures: Sequence[Figure]) -> str:
    """Each figure on a line, with its aim and whether it was met."""
    lines = []
    for figure in figures:
        value = "unknown" if figure.value is None else f"{figure.value:.4g}"
        line = f"{figure.figure}: {value} ({figure.unit})"
        if figure.reach is not None:
            sign = "≤" if figure.better == "lower" else "≥"
            met = {True: "reached", False: "NOT reached", None: "undecided"}[figure.reached]
            line += f", aim {sign} {figure.reach:g}: {met}"
        lines.append(line)
    return "\n".join(lines)


def write_json(path: str | Path, figures: Sequence[Figure], rows: Sequence[Row]) -> None:
    """Writes the figures with the machine and the versions of the rows, atomically."""
    content = {
        "rows": [dataclasses.asdict(figure) for figure in figures],
        "machine": machine(),
        "versions": versions(rows),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def versions(rows: Sequence[Row]) -> dict[str, str]:
    """Version of each package; of several, all that rows were made with."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, number in row.versions.items():
            found.setdefault(name, set()).add(number)
    return {name: ", ".join(sorted(numbers)) for name, numbers in found.items()}


def machine() -> dict[str, Any]:
    """The machine that this process runs on."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": available_cores(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return models[0] if models else platform.processor()


def _leading(weights: dict[str, str]) -> str:
    """The heaviest three sources, such as `code 0.62, math 0.21, web 0.09`."""
    heaviest = sorted(weights, key=lambda name: -float(weights[name]))[:3]
    return ", ".join(f"{name} {float(weights[name]):.2f}" for name in heaviest)

"""The report's charts as plain data; `svg.py` and `plots.py` draw them.

One run: a line for each source. Several runs: a chart for each source, a line for each run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from megatron_fastmix.report.alignment import (
    ALIGNMENT_PART,
    average_product,
    smooth,
    smooth_advantage,
)
from megatron_fastmix.report.chart import Chart, Series
from megatron_fastmix.report.palette import MOST_LINES
from megatron_fastmix.report.run_record import Points, RunRecord
from megatron_fastmix.report.scale import share_axis

MOST_BANDS = 8
"""Lines of a chart that have bands; more cover each other."""
MANY = 256
"""Sources beyond which the heaviest alone are drawn."""
HEAVIEST = 64
"""Of many sources, those that are drawn."""
MOST_POINTS = 240
"""Points of a line; a longer one is averaged in buckets."""


def thin(points: Points) -> Points:
    """At most `MOST_POINTS` points, each the mean of its bucket, at the bucket's last step."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return points
    return [
        (bucket[-1][0], statistics.fmean(value for _, value in bucket))
        for bucket in (points[i : i + size] for i in range(0, len(points), size))
    ]


def build_charts(runs: Sequence[RunRecord], order: Sequence[str]) -> dict[str, list[Chart]]:
    """Charts by section, those without data left out. `order` are the sources, heaviest first."""
    drawn, hidden = order, ""
    if len(order) > MANY:
        drawn = order[:HEAVIEST]
        hidden = f" Drawn are the {HEAVIEST} heaviest of {len(order):,} sources."
    first = runs[0]
    targets = list(dict.fromkeys(target for run in runs for target in run.targets))
    sections: dict[str, list[Chart]] = {
        "Weights of groups over time": _groups(runs),
        "Weights over time": _per_name(
            runs,
            drawn,
            "weights",
            "Weights",
            "share of tokens in the loss",
            lambda run, name: [(0, run.initial[name]), *run.by_name("outer", "weights", name)],
            note=f"The learned weight is the mean over the shaded part.{hidden}",
            from_zero=True,
        ),
        "Alignment of each source with the target": _alignment(runs, drawn, targets),
        "Loss on each target": [
            chart
            for target in targets
            for chart in _one_line_each(
                runs,
                f"target_loss_{target}",
                f"Loss on {target}",
                "nats per token",
                partial(RunRecord.by_name, kind="outer", key="target_loss", name=target),
            )
        ],
        "Weight of each target": _target_weights(runs, targets),
        "Loss on each source": _per_name(
            runs,
            drawn,
            "source_loss",
            "Training loss",
            "nats per token",
            lambda run, name: run.by_name("inner", "source_loss", name),
            note="Unweighted, on the samples drawn for training.",
        ),
        "Quality of the estimates": _quality(runs, first),
        "Speed": _one_line_each(
            runs,
            "throughput",
            "Throughput of the inner steps",
            "tokens per second",
            lambda run: run.figure("inner", "tokens_per_second"),
        ),
    }
    tail = _averaged_steps(runs)
    return {
        title: [replace(chart, tail=tail) for chart in charts]
        for title, found in sections.items()
        if (charts := [c for c in found if any(s.points for s in c.series)])
    }


def _averaged_steps(runs: Sequence[RunRecord]) -> tuple[int, int] | None:
    """First and last step of the averaged part; None where the runs differ in it."""
    found = {
        (run.outer[-len(run.tail)]["step"], run.outer[-1]["step"]) if run.outer else None
        for run in runs
    }
    return found.pop() if len(found) == 1 else None


def _groups(runs: Sequence[RunRecord]) -> list[Chart]:
    """The sums of the weights of each group, where they were logged."""
    last = runs[0].outer[-1].get("group_weights") if runs[0].outer else None
    if not isinstance(last, dict):
        return []
    return _per_name(
        runs,
        sorted(last, key=lambda name: -(last[name] or 0.0)),
        "group_weights",
        "Weights of groups",
        "share of tokens in the loss",
        lambda run, name: run.by_name("outer", "group_weights", name),
        from_zero=True,
    )


def _alignment(
    runs: Sequence[RunRecord], order: Sequence[str], targets: Sequence[str]
) -> list[Chart]:
    """The products with the whole target loss, and with each target where these were logged."""
    note = (
        "How much more than the present mixture a step on this source alone lowers the target "
        "loss: what lies above 0 gains weight. Averaged over the outer steps of the last "
        f"{1 / ALIGNMENT_PART:.0%} of the run; the band is the standard error."
    )
    charts = _per_name(
        runs,
        order,
        "alignment",
        "Alignment with the target loss",
        "⟨∇ target, ∇ source⟩",
        smooth_advantage,
        bands=True,
        note=note,
        line=0.0,
    )
    logged = [
        target
        for target in targets
        if any(a is not None for run in runs for a in average_product(run, target))
    ]
    for target in logged if len(logged) > 1 else []:
        charts += _per_name(
            runs,
            order,
            f"alignment_{target}",
            f"Alignment with {target}",
            "⟨∇ target, ∇ source⟩",
            partial(smooth_advantage, target=target),
            line=0.0,
        )
    return charts


def _target_weights(runs: Sequence[RunRecord], targets: Sequence[str]) -> list[Chart]:
    """Only where there is something to tell: several targets."""
    if len(targets) < 2:
        return []
    return _per_name(
        runs,
        targets,
        "target_weight",
        "Weight of each target",
        "share of the target loss",
        lambda run, name: run.by_name("outer", "target_weight", name),
        from_zero=True,
    )


def _quality(runs: Sequence[RunRecord], first: RunRecord) -> list[Chart]:
    charts = _one_line_each(
        runs,
        "noise",
        "Standard error of an estimate over the spread between sources",
        "ratio",
        lambda run: run.figure("outer", "noise_to_signal"),
        line=1.0,
        note="Above 1, one estimate is noise; the average over many outer steps need not be.",
    )
    for key in first.further_figures():
        charts += _one_line_each(
            runs,
            key,
            key.replace("_", " "),
            "as logged",
            partial(RunRecord.figure, kind="outer", key=key),
        )
    return charts


def _per_name(
    runs: Sequence[RunRecord],
    names: Sequence[str],
    key: str,
    title: str,
    unit: str,
    values: Callable[[RunRecord, str], Points],
    *,
    bands: bool = False,
    note: str = "",
    from_zero: bool = False,
    line: float | None = None,
) -> list[Chart]:
    def series(run: RunRecord, name: str, label: str, colour: int | None) -> Series:
        few = len(names if len(runs) == 1 else runs) <= MOST_BANDS
        band = _band(run, name) if bands and few and colour is not None else []
        return Series(name=label, points=thin(values(run, name)), band=band, colour=colour)

    def place(i: int) -> int | None:
        return i if i < MOST_LINES else None

    if len(runs) == 1:
        lines = [series(runs[0], name, name, place(i)) for i, name in enumerate(names)]
        return [
            Chart(
                key=key,
                title=title,
                unit=unit,
                series=lines,
                note=note,
                from_zero=from_zero,
                line=line,
            )
        ]
    charts = [
        Chart(
            key=f"{key}_{name}",
            title=f"{title}: {name}",
            unit=unit,
            series=[
                series(run, name, run.name, place(i))
                for i, run in enumerate(runs)
                if key == "group_weights" or name in run.sources or name in run.targets
            ],
            note=note if k == 0 else "",
            from_zero=from_zero,
            line=line,
        )
        for k, name in enumerate(names)
    ]
    return share_axis(charts)


def _band(run: RunRecord, name: str) -> list[tuple[int, float, float]]:
    # The standard error of a mean of independent estimates.
    squares = [(s, e * e) for s, e in run.by_name("outer", "advantage_standard_error", name)]
    width = max(1, len(run.outer) // ALIGNMENT_PART)
    errors = {
        step: math.sqrt(square / min(width, i + 1))
        for i, (step, square) in enumerate(smooth(squares, run))
    }
    return [
        (step, value - errors[step], value + errors[step])
        for step, value in thin(smooth_advantage(run, name))
        if step in errors
    ]


def _one_line_each(
    runs: Sequence[RunRecord],
    key: str,
    title: str,
    unit: str,
    values: Callable[[RunRecord], Points],
    *,
    note: str = "",
    line: float | None = None,
) -> list[Chart]:
    lines = [
        Series(name=run.name, points=thin(values(run)), colour=i if i < MOST_LINES else None)
        for i, run in enumerate(runs)
    ]
    return [Chart(key=key, title=title, unit=unit, series=lines, note=note, line=line)]

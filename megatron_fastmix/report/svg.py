"""Charts as HTML: the lines in an SVG that stretches, all lettering in HTML that does not.

So one page serves a desktop and a phone, and text keeps its size on both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from megatron_fastmix.report.chart import Chart, Series
from megatron_fastmix.report.number_texts import short
from megatron_fastmix.report.palette import css_class
from megatron_fastmix.report.scale import spread_out, ticks, y_range
from megatron_fastmix.report.templating import render

SIDE = 1000
"""Units of the stretched drawing, across and down."""
TABLE_ROWS = 12
TABLE_COLUMNS = 24
"""Lines in the table of values; the file that the page offers has all."""
LABEL_REM = 1.15
"""Height of a line's label at its end."""
MOST_LABELS = 18
"""Lines that are labelled at their ends; the others are in the legend alone."""
LEAST_REM = 15.0
"""Height of a plot."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """The name of a line at its end."""

    name: str
    style: str
    """Classes of the line."""
    end: float
    """Where the line ends, in parts of the height from the top."""
    place: float
    """Where the label stands, moved so that none covers another."""


def draw(chart: Chart) -> Markup:
    """A `figure` with the drawing, its legend and a table of the values."""
    shown = [s for s in chart.series if s.points]
    low, high = y_range(chart)
    last = max(s.points[-1][0] for s in shown) or 1
    first = min(s.points[0][0] for s in shown)
    first = 0 if first < last / 10 else first
    across = last - first or 1

    def x(step: float) -> float:
        return SIDE * min(max(step - first, 0), across) / across

    def y(value: float) -> float:
        return SIDE * (high - min(max(value, low), high)) / (high - low)

    bands = []
    for series in reversed(shown):
        if series.band:
            there = [f"{x(s):.1f} {y(top):.1f}" for s, _, top in series.band]
            back = [f"{x(s):.1f} {y(bottom):.1f}" for s, bottom, _ in reversed(series.band)]
            bands.append((css_class(series.colour), f"M{'L'.join(there + back)}Z"))
    lines = []
    for series in reversed(shown):
        places = [f"{x(s):.1f} {y(v):.1f}" for s, v in series.points]
        if len(places) == 1:
            places.append(f"{x(series.points[0][0]) + 2:.1f} {places[0].split()[1]}")
        lines.append((css_class(series.colour), f"M{'L'.join(places)}"))
    named = [(s, css_class(s.colour)) for s in shown if s.colour is not None]
    labelled = [(s, style) for s, style in named[:MOST_LABELS]] if len(shown) > 1 else []
    height = max(LEAST_REM, LABEL_REM * (len(labelled) + 1))
    ends = [y(s.points[-1][1]) / SIDE for s, _ in labelled]
    placed = spread_out(ends, LABEL_REM / height)
    tail = None if chart.tail is None else (x(chart.tail[0]), x(chart.tail[1]))
    text = render(
        "chart.html",
        chart=chart,
        first=first,
        last=last,
        side=SIDE,
        height=height,
        y_marks=[(short(v), y(v) / SIDE) for v in ticks(low, high)],
        x_marks=[(f"{int(v):,}", x(v) / SIDE) for v in ticks(first, last, 4) if v == int(v)],
        compare=None if chart.line is None else y(chart.line),
        tail=None if tail is None or tail[1] <= tail[0] else tail,
        bands=bands,
        lines=lines,
        labels=[
            Label(name=s.name, style=style, end=end, place=place)
            for (s, style), end, place in zip(labelled, ends, placed, strict=True)
        ],
        all_labelled=len(labelled) == len(shown),
        named=[(s.name, style) for s, style in named] if len(shown) > 1 else [],
        others=sum(s.colour is None for s in shown),
        data=_data(shown, first, last),
        table=_table(shown),
        untold=max(0, len(shown) - TABLE_COLUMNS),
    )
    return Markup(text)


def _data(shown: list[Series], first: int, last: int) -> dict[str, Any]:
    """What the page's script needs: each line's name, classes, steps and values."""
    steps = [[step for step, _ in s.points] for s in shown]
    same = all(each == steps[0] for each in steps)
    return {
        "first": first,
        "last": last,
        "steps": steps[0] if same else steps,
        "series": [[s.name, css_class(s.colour), [_few(v) for _, v in s.points]] for s in shown],
    }


def _table(shown: list[Series]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names, and values at a dozen steps, evenly spread; a line without a value there has its last
    before."""
    steps = sorted({step for series in shown for step, _ in series.points})
    if len(steps) > TABLE_ROWS:
        steps = [steps[round(i * (len(steps) - 1) / (TABLE_ROWS - 1))] for i in range(TABLE_ROWS)]
    columns = shown[:TABLE_COLUMNS]
    rows = []
    for step in steps:
        cells = []
        for series in columns:
            before = [value for s, value in series.points if s <= step]
            cells.append(short(before[-1]) if before else "–")
        rows.append((f"{step:,}", cells))
    return [s.name for s in columns], rows


def _few(value: float) -> float:
    return float(f"{value:.4g}")

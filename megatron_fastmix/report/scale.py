"""Scales of charts: their ends and their marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from megatron_fastmix.report.chart import Chart


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= 0.75 * raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def y_range(chart: Chart) -> tuple[float, float]:
    """Lowest and highest value on the axis; outliers of the first steps do not flatten the rest."""
    if chart.y is not None:
        return chart.y
    values = sorted(v for s in chart.series for _, v in s.points)
    values = values or [0.0]
    low, high = values[0], values[-1]
    if chart.series and all(s.band for s in chart.series if s.colour is not None):
        edges = [v for s in chart.series for _, *both in s.band[len(s.band) // 10 :] for v in both]
        low, high = min([low, *edges]), max([high, *edges])
    if chart.line is not None:
        low, high = min(low, chart.line), max(high, chart.line)
    if chart.from_zero:
        low = 0.0
    margin = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if chart.from_zero else low - margin), high + margin


def share_axis(charts: Sequence[Chart]) -> list[Chart]:
    """The charts with one y axis for all, so that they can be compared by eye."""
    ranges = [y_range(chart) for chart in charts if any(series.points for series in chart.series)]
    if not ranges:
        return list(charts)
    both = (min(low for low, _ in ranges), max(high for _, high in ranges))
    return [replace(chart, y=both) for chart in charts]


def spread_out(positions: Sequence[float], gap: float) -> list[float]:
    """Moves `positions` so that neighbours are `gap` apart or more, all within [0, 1].

    Where they cannot all fit, the gap shrinks to what does.
    """
    if len(positions) > 1:
        gap = min(gap, 1 / (len(positions) - 1))
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = list(positions)
    # Upwards so that nobody overlaps, then down from the top where that ran past it.
    floor = 0.0
    for i in order:
        placed[i] = max(placed[i], floor)
        floor = placed[i] + gap
    ceiling = 1.0
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed

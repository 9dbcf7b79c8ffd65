"""A chart as plain data; `charts.py` makes them, `svg.py` and `plots.py` draw them."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_fastmix.report.run_record import Points


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line."""

    name: str
    points: Points
    band: list[tuple[int, float, float]] = field(default_factory=list)
    """(optimizer step, lower, upper)"""
    colour: int | None = None
    """Place in the palette; None for a line in the background, thin and grey."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over the optimizer steps of the proxy."""

    key: str
    """File name of the picture, without its suffix."""
    title: str
    unit: str
    series: list[Series]
    note: str = ""
    from_zero: bool = False
    line: float | None = None
    """A value to compare with, drawn across."""
    tail: tuple[int, int] | None = None
    """First and last step of the averaged part, which is shaded."""
    y: tuple[float, float] | None = None
    """Lowest and highest value on the axis, where it is not the chart's own: charts of the same
    thing share one."""

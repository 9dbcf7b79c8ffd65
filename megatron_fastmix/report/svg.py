"""Charts as HTML: the lines in an SVG that stretches, all lettering in HTML that does not.

So one page serves a desktop and a phone, and text keeps its size on both.
"""

from __future__ import annotations

import json
import math
from html import escape

from megatron_fastmix.report.charts import Chart, Series
from megatron_fastmix.report.palette import css_class

SIDE = 1000
"""Units of the stretched drawing, across and down."""
TABLE_ROWS = 12


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= 0.75 * raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A short text for a number on an axis or in a table."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        return f"{value:.2e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def y_range(chart: Chart) -> tuple[float, float]:
    """Lowest and highest value on the axis; outliers of the first steps do not flatten the rest."""
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


def draw(chart: Chart) -> str:
    """A `figure` with the drawing, its legend and a table of the values."""
    shown = [s for s in chart.series if s.points]
    low, high = y_range(chart)
    last = max(s.points[-1][0] for s in shown) or 1
    first = min(s.points[0][0] for s in shown)
    first = 0 if first < last / 10 else first
    across = last - first or 1

    def x(step: float) -> float:
        return SIDE * (step - first) / across

    def y(value: float) -> float:
        return SIDE * (high - min(max(value, low), high)) / (high - low)

    shapes = []
    marks = ticks(low, high)
    shapes += [f'<path class="grid" d="M0 {y(v):.1f}H{SIDE}"/>' for v in marks]
    if chart.line is not None:
        shapes.append(f'<path class="compare" d="M0 {y(chart.line):.1f}H{SIDE}"/>')
    for series in reversed(shown):
        if series.band:
            there = [f"{x(s):.1f} {y(top):.1f}" for s, _, top in series.band]
            back = [f"{x(s):.1f} {y(bottom):.1f}" for s, bottom, _ in reversed(series.band)]
            shapes.append(f'<path class="band {_class(series)}" d="M{"L".join(there + back)}Z"/>')
    for series in reversed(shown):
        places = [f"{x(s):.1f} {y(v):.1f}" for s, v in series.points]
        if len(places) == 1:
            places.append(f"{x(series.points[0][0]) + 2:.1f} {places[0].split()[1]}")
        shapes.append(f'<path class="line {_class(series)}" d="M{"L".join(places)}"/>')
    y_labels = "".join(
        f'<span style="top:{y(v) / SIDE:.2%}">{escape(number(v))}</span>' for v in marks
    )
    steps = [v for v in ticks(first, last, 4) if v == int(v)]
    x_labels = "".join(f'<span style="left:{x(v) / SIDE:.2%}">{int(v):,}</span>' for v in steps)
    label = f"{chart.title}, {chart.unit}, over steps {first:,} to {last:,}; values in the table"
    data = {
        "first": first,
        "last": last,
        "series": [
            [s.name, [p[0] for p in s.points], [_short(p[1]) for p in s.points]]
            for s in shown
            if s.colour is not None
        ],
    }
    embedded = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return f"""<figure class="chart" id="{escape(chart.key, quote=True)}">
<figcaption><b>{escape(chart.title)}</b> <span>{escape(chart.unit)}</span></figcaption>
<div class="plot"><div class="y" aria-hidden="true">{y_labels}</div>
<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img"
 aria-label="{escape(label, quote=True)}">{"".join(shapes)}</svg>
<div class="x" aria-hidden="true">{x_labels}</div><div class="cursor" hidden></div></div>
<div class="axis" aria-hidden="true">optimizer steps of the proxy</div>
{_legend(shown)}<output class="tip" hidden></output>
<details><summary>Values</summary>{_table(shown)}</details>
<script type="application/json">{embedded}</script></figure>"""


def _class(series: Series) -> str:
    return css_class(series.colour)


def _legend(shown: list[Series]) -> str:
    if len(shown) < 2:
        return ""
    items = [
        f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><path class="line {_class(s)}"'
        f' d="M0 4H24"/></svg>{escape(s.name)}</li>'
        for s in shown
        if s.colour is not None
    ]
    others = sum(s.colour is None for s in shown)
    if others:
        items.append(
            '<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><path class="line rest" '
            f'd="M0 4H24"/></svg>{others} more</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _table(shown: list[Series]) -> str:
    """Values at a dozen steps, evenly spread; a line without a value there has its last before."""
    steps = sorted({step for series in shown for step, _ in series.points})
    if len(steps) > TABLE_ROWS:
        steps = [steps[round(i * (len(steps) - 1) / (TABLE_ROWS - 1))] for i in range(TABLE_ROWS)]
    head = "".join(f'<th scope="col">{escape(s.name)}</th>' for s in shown)
    rows = []
    for step in steps:
        cells = []
        for series in shown:
            before = [value for s, value in series.points if s <= step]
            cells.append(f"<td>{escape(number(before[-1])) if before else '–'}</td>")
        rows.append(f'<tr><th scope="row">{step:,}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">step</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")

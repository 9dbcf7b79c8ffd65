"""Cost of the search against target loss, one point per method."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.registry import FASTMIX, METHODS
from megatron_fastmix.lab.comparison.method_lines import UNIFORM, MethodLine
from megatron_fastmix.report import palette
from megatron_fastmix.report.drawing import FAINT, TEXT, new_figure, plain, write_png
from megatron_fastmix.report.palette import DASHES

SEARCHED = {
    FASTMIX: "FastMix",
    "climb": "CLIMB",
    "regmix": "RegMix, LightGBM",
    "regmix_linear": "RegMix, linear",
    "mixing_law": "mixing law",
    "random_search": "random search",
    "doge": "DoGE",
    "odm": "online data mixing",
    "doremi": "DoReMi",
}
"""Methods that cost something, in words; a method has the same colour in every panel."""
COLOURS = (*palette.COLOURS, "#b08900")
"""One for each of `SEARCHED`."""
FREE = {
    UNIFORM: "uniform",
    "proportional": "proportional",
    "temperature": "temperature",
    "unimax": "UniMax",
    "random_draw": "random draw",
}
"""Mixtures that cost nothing, in words: lines across, named in the panel."""
_FREE_DASHES = ((4.0, 0.0), *DASHES[1:], (4.0, 1.0, 1.0, 1.0), (8.0, 2.0))
_TICKS = tuple(base * 10.0**power for power in range(-3, 5) for base in (1, 2, 5))
_SIDE = 1.1
"""Points of equal cost stand side by side, around it, by this factor."""
_APART = 0.055
"""Between words beside a panel, in its heights."""


def plot_methods(tables: Mapping[str, Sequence[MethodLine]], path: Path) -> None:
    """One panel per scenario, by its title; bars are standard deviations over the seeds.

    What lies further above uniform than the best lies below it, twice over, is named with its value
    at the panel's upper edge. Variants of FastMix are left out, and scenarios that compare nothing
    else or have no row of FastMix, whose cost is the unit. Raises `ConfigError` where none is left.
    """
    published = {
        title: [line for line in lines if line.method in METHODS] for title, lines in tables.items()
    }
    shown = {
        title: lines
        for title, lines in published.items()
        if any(line.method == FASTMIX for line in lines)
        and any(line.flops and line.method != FASTMIX for line in lines)
    }
    if not shown:
        raise ConfigError(
            f"--plot: needs rows of {FASTMIX} and of another method that searches; run the "
            "comparison for both first"
        )
    rows = (len(shown) + 1) // 2
    figure = new_figure(11, 3.9 * rows)
    panels = []
    for number, (title, lines) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, 2, number)
        axes.set_title(title, loc="left", fontsize=12.5, color=TEXT, parse_math=False)
        panels.append((axes, _draw(axes, lines)))
    reach = [cost for _, drawn in panels for cost in drawn] or [1.0]
    for axes, _ in panels:
        _scale(axes, min(reach), max(reach))
    handles = [
        Line2D([], [], **_marked(method), label=label)
        for method, label in labels(line for lines in shown.values() for line in lines).items()
    ]
    if len(shown) % 2:  # a place is free
        legend = figure.add_subplot(rows, 2, len(shown) + 1)
        legend.axis("off")
        legend.legend(handles=handles, loc="center", frameon=False, fontsize=12, labelspacing=0.7)
    else:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    write_png(figure, path)


def labels(lines: Iterable[MethodLine]) -> dict[str, str]:
    """`label` by method that costs something, with the numbers of all `lines`; in the order of
    `SEARCHED`."""
    proxies: dict[str, set[int]] = {}
    for line in lines:
        proxies.setdefault(line.method, set()).update({line.proxies} if line.proxies else ())
    return {method: label(method, proxies[method]) for method in SEARCHED if method in proxies}


def label(method: str, proxies: Collection[int]) -> str:
    """A method's words, with the proxies that it trains where that is a setting of its own."""
    name, comma, kind = SEARCHED[method].partition(", ")
    numbers = " or ".join(map(str, sorted(proxies)))
    return f"{name}, {numbers} proxies{comma}{kind}" if numbers else f"{name}{comma}{kind}"


def _draw(axes: Axes, lines: Sequence[MethodLine]) -> list[float]:
    """Draws a panel but for its cost axis; returns the costs, × FastMix's."""
    highest = _highest(lines)
    ours = next(line.flops for line in lines if line.method == FASTMIX)
    points: list[MethodLine] = []
    above: list[str] = []
    free: dict[str, float] = {}
    for line in sorted(lines, key=lambda line: (line.flops, line.loss)):
        words = {**SEARCHED, **FREE}[line.method]
        if line.loss > highest:
            above.append(f"↑ {words}: {line.loss:.2f}")
        elif line.method in SEARCHED:
            points.append(line)
        else:
            place = list(FREE).index(line.method)
            dashes = (0, _FREE_DASHES[place])
            axes.axhline(line.loss, color=FAINT, linewidth=1.3, linestyle=dashes, zorder=1)
            free[words] = line.loss
    drawn = _side_by_side([line.flops / ours for line in points])
    for cost, line in zip(drawn, points, strict=True):
        axes.errorbar([cost], [line.loss], yerr=[line.deviation or 0.0], **_marked(line.method))
    plain(axes, "search cost, as a multiple of FastMix's", "target loss, nats per token", size=10.5)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.07 * len(above) * (high - low))
    _name_lines(axes, free)
    for number, text in enumerate(above):
        axes.annotate(
            text,
            xy=(0.99, 0.98 - 0.07 * number),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=9.5,
            color=TEXT,
        )
    return drawn


def _side_by_side(costs: Sequence[float]) -> list[float]:
    """Where points of ascending `costs` are drawn: those of about one cost around their own."""
    groups: list[list[float]] = []
    for cost in costs:
        if groups and cost < 1.03 * groups[-1][0]:
            groups[-1].append(cost)
        else:
            groups.append([cost])
    return [
        cost * _SIDE ** (place - (len(group) - 1) / 2)
        for group in groups
        for place, cost in enumerate(group)
    ]


def _name_lines(axes: Axes, lines: Mapping[str, float]) -> None:
    """Words beside the panel at the heights of their lines, apart where lines are close."""
    low, high = axes.get_ylim()
    by_height = sorted(lines.items(), key=lambda item: item[1])
    heights = [(loss - low) / (high - low) for _, loss in by_height]
    for place in range(1, len(heights)):
        heights[place] = max(heights[place], heights[place - 1] + _APART)
    for place in reversed(range(len(heights))):  # and none above the panel
        room = heights[place + 1] - _APART if place + 1 < len(heights) else 0.97
        heights[place] = min(heights[place], room)
    for (words, _), height in zip(by_height, heights, strict=True):
        axes.annotate(
            words,
            xy=(1.01, height),
            xycoords="axes fraction",
            va="center",
            fontsize=9.5,
            color=FAINT,
        )


def _scale(axes: Axes, lowest: float, highest: float) -> None:
    """The cost axis, the same in every panel, with room beside the outermost points."""
    low, high = lowest / 1.5, highest * 1.5
    axes.set_xscale("log")
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    if len(ticks) > 11:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)


def _marked(method: str) -> dict[str, Any]:
    mine = method == FASTMIX
    place = list(SEARCHED).index(method)
    return {
        "color": COLOURS[place],
        "marker": "*" if mine else "osD^"[place % 4],
        "markersize": 15 if mine else 7,
        "linestyle": "",
        "zorder": 3,
    }


def _highest(lines: Sequence[MethodLine]) -> float:
    """The largest loss that is drawn: one point far away would press all others together."""
    losses = [line.loss for line in lines]
    base = next((line.loss for line in lines if line.method == UNIFORM), max(losses))
    best = min(losses)
    if base <= best:
        return max(losses)
    limit = base + 2 * (base - best)
    # Bars reach further, and what lies within their reach costs nothing.
    return max(line.loss + (line.deviation or 0.0) for line in lines if line.loss <= limit)

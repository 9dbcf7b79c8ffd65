"""Cost of the search against target loss, one point per method, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.lab.baselines.registry import FASTMIX, METHODS
from megatron_fastmix.lab.comparison.method_table import UNIFORM, MethodLine
from megatron_fastmix.report.plots import COLOURS

_MARKERS = "osD^"
"""One for each round through the colours."""


def plot_methods(tables: Mapping[str, Sequence[MethodLine]], path: Path) -> None:
    """One panel per scenario; methods that cost nothing are lines, bars are standard deviations.

    A method that is further above uniform than the gap twice over is named beside the panel alone.
    Variants of FastMix are left out, and scenarios that compare nothing else.
    """
    published = {
        name: [one for one in lines if one.method in METHODS] for name, lines in tables.items()
    }
    shown = {
        name: lines
        for name, lines in published.items()
        if any(line.flops and line.method != FASTMIX for line in lines)
    }
    columns = min(2, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(7.4 * columns, 4.4 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, lines) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        highest = _highest(lines)
        drawn: list[float] = []
        ours = next((line.flops for line in lines if line.method == FASTMIX), 1.0)
        methods = sorted(line.method for line in lines if line.method != FASTMIX)
        for line in lines:
            mine = line.method == FASTMIX
            rank = 0 if mine else methods.index(line.method) + 1
            colour = COLOURS[rank % len(COLOURS)]
            marker = "*" if mine else _MARKERS[rank // len(COLOURS)]
            if line.loss > highest:
                label = f"{line.method}: {line.loss:.2f}"
                axes.plot([], [], marker=marker, linestyle="", color=colour, label=label)
            elif line.flops:
                cost = line.flops / ours
                # Methods of equal cost stand side by side, a few per cent apart.
                cost *= 1 + 0.08 * sum(abs(cost / other - 1) < 0.01 for other in drawn)
                drawn.append(line.flops / ours)
                axes.errorbar(
                    [cost],
                    [line.loss],
                    yerr=[line.deviation or 0.0],
                    fmt=marker,
                    markersize=14 if mine else 6,
                    color=colour,
                    label=line.method,
                )
            else:
                axes.axhline(line.loss, color=colour, linestyle="--", label=line.method)
        axes.set_xscale("log")
        axes.set_title(name)
        axes.set_xlabel("search cost, FLOPs / FastMix's")
        axes.set_ylabel("target loss, nats per token")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def _highest(lines: Sequence[MethodLine]) -> float:
    """The largest loss that is drawn: one point far away would press all others together."""
    losses = [line.loss for line in lines]
    base = next((line.loss for line in lines if line.method == UNIFORM), max(losses))
    best = min(losses)
    return base + 2 * (base - best) if base > best else max(losses)

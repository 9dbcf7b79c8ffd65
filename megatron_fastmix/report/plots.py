"""Pictures of a run, drawn without a display."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from megatron_fastmix.errors import DataError
from megatron_fastmix.report.chart import Chart
from megatron_fastmix.report.drawing import FAINT, TEXT, new_figure, plain, styled, write_png
from megatron_fastmix.report.palette import REST, line_style
from megatron_fastmix.report.scale import spread_out, y_range
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.run.metrics import read_metrics

LONGEST_LABEL = 24
"""Characters of a name; a longer one would squeeze the lines."""
MOST_SOURCES = 40
"""Lines of the picture, of the sources with the largest learned weights."""
LABEL_HEIGHT = 0.23
"""Inches between two labels at the line ends."""
MARGINS = 1.0
"""Inches of the picture's height that lie above and below the axes."""
STEPS = "optimizer steps of the proxy"


def plot_weights(metrics_path: str | Path, output_png: str | Path, mixture: LearnedMixture) -> None:
    """Draws the weights over optimizer steps, labelled at the line ends with the learned weight: of
    the 40 heaviest sources, with the number of the others and their sum below.

    The shaded tail is what the learned weight averages. The lettering can be read at half of the
    picture's 1440 pixels of width. Raises `DataError` where no outer step has been logged or the
    metrics are about other sources.
    """
    steps, weights = _history(metrics_path, mixture)
    learned = mixture.weights
    ranked = sorted(weights, key=lambda name: -learned[name])
    order, others = ranked[:MOST_SOURCES], ranked[MOST_SOURCES:]
    height = max(4.2, LABEL_HEIGHT * len(order) + MARGINS)
    figure = new_figure(9, height)
    axes = figure.add_subplot()
    tail = steps[-mixture.averaged_outer_steps :]
    axes.axvspan(tail[0], steps[-1], color="black", alpha=0.06, linewidth=0)
    for rank, name in enumerate(order):
        axes.plot(
            steps,
            weights[name],
            **styled(rank),
            linewidth=2.4 if rank < 3 else 1.6,
            zorder=3 - rank / len(order),
        )
    axes.set_xlim(0, steps[-1])
    axes.set_ylim(0, min(1.0, 1.08 * max(max(weights[name]) for name in order)))
    below = STEPS
    if others:
        rest = sum(learned[name] for name in others)
        below += f" · {len(others):,} lighter sources, {rest:.2f} together, are not drawn"
    plain(axes, below, f"share of {mixture.loss_tokens_are}")
    axes.annotate(
        "averaged to the learned weights",
        xy=(steps[-1], 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=11,
        color=FAINT,
    )
    _label_ends(axes, learned, {name: weights[name][-1] for name in order}, height)
    write_png(figure, output_png)


def _history(
    metrics_path: str | Path, mixture: LearnedMixture
) -> tuple[list[int], dict[str, list[float]]]:
    """Steps at which the weights were set, the start included, and the weights by source."""
    outer = [line for line in read_metrics(metrics_path) if line["kind"] == "outer"]
    if not outer:
        raise DataError(f"{metrics_path}: no outer step is logged, so there is nothing to draw")
    for line in outer:
        if line.get("weights", {}).keys() != mixture.weights.keys():
            raise DataError(
                f"{metrics_path}: step {line['step']} is not about the sources "
                f"{list(mixture.weights)}; give the metrics of the run that wrote the mixture"
            )
    steps = [0, *(line["step"] for line in outer)]
    weights = {
        source.name: [source.initial_weight, *(line["weights"][source.name] for line in outer)]
        for source in mixture.sources
    }
    return steps, weights


def _label_ends(
    axes: Axes, learned: dict[str, float], ends: dict[str, float], height: float
) -> None:
    """Writes name and learned weight beside each line's end; `ends` are in the lines' order."""
    top = axes.get_ylim()[1]
    places = spread_out([end / top for end in ends.values()], LABEL_HEIGHT / (height - MARGINS))
    for rank, (name, place) in enumerate(zip(ends, places, strict=True)):
        short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
        # A thin leader from the line's end to a piece of the line, then the text.
        for xs, ys, width in (
            ((1.0, 1.04), (ends[name] / top, place), 0.7),
            ((1.04, 1.08), (place, place), 2.0),
        ):
            axes.plot(
                xs,
                ys,
                **(styled(rank) if width > 1 else {"color": line_style(rank)[0]}),
                linewidth=width,
                transform=axes.transAxes,
                clip_on=False,
            )
        axes.text(
            1.095,
            place,
            f"{learned[name]:.3f}  {short}",
            transform=axes.transAxes,
            va="center_baseline",
            fontsize=12,
            fontweight="bold" if rank < 3 else "normal",
            color=TEXT,
            parse_math=False,  # a name may hold dollar signs
        )


def plot_chart(chart: Chart, folder: str | Path) -> None:
    """Draws `chart` to FOLDER/KEY.png, where characters that file names lack become `_`."""
    path = Path(folder) / f"{re.sub(r'[^0-9A-Za-z_.-]', '_', chart.key)}.png"
    figure = new_figure(9, 4.6)
    draw_lines(figure.add_subplot(), chart)
    write_png(figure, path)


def draw_lines(axes: Axes, chart: Chart) -> None:
    """Lines, bands, the averaged part and the legend of `chart`."""
    shown = [series for series in chart.series if series.points]
    if chart.tail is not None:
        axes.axvspan(*chart.tail, color="black", alpha=0.06, linewidth=0)
    handles: list[Line2D] = []
    for series in reversed(shown):
        rest = series.colour is None
        style = {"color": REST} if series.colour is None else styled(series.colour)
        if series.band:
            steps, low, high = zip(*series.band, strict=True)
            axes.fill_between(steps, low, high, color=style["color"], alpha=0.18, linewidth=0)
        steps, values = zip(*series.points, strict=True)
        (line,) = axes.plot(steps, values, **style, linewidth=1.0 if rest else 2.0)
        if not rest:
            line.set_label(series.name)
            handles.insert(0, line)
    if chart.line is not None:
        axes.axhline(chart.line, color="#888888", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(*y_range(chart))
    axes.set_title(chart.title, loc="left", fontsize=13, parse_math=False)
    plain(axes, STEPS, chart.unit)
    if len(shown) > 1:
        legend = axes.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
            fontsize=11,
            handlelength=3,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)

"""Pictures of a run, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.export.mixture_file import MixtureFile
from megatron_fastmix.report.metrics import read_metrics
from megatron_fastmix.report.weight_history import weight_history

# Okabe and Ito's colours, told apart by colour-blind readers too (yellow left out: too pale for
# thin lines on white). Past seven sources the dashes change.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
# A run has one weight per source, and a name longer than this would squeeze the lines.
LONGEST_LABEL = 28
LABEL_HEIGHT = 0.17
"""Inches between two labels at the line ends."""


def plot_weights(
    metrics_path: str | Path, output_png: str | Path, *, mixture: MixtureFile | None = None
) -> None:
    """Draws the weights over optimizer steps, labelled at the line ends with the learned weight.

    The averaged tail is shaded. With `mixture` the labels show its weights; without, those that
    follow from the metrics so far. Raises `DataError` where no outer step has been logged.
    """
    history = weight_history(
        read_metrics(metrics_path), averaged=mixture.averaged_outer_steps if mixture else None
    )
    learned = mixture.weights if mixture else history.mean
    order = sorted(history.weights, key=lambda name: -learned[name])
    height = max(4.5, LABEL_HEIGHT * len(order) + 1.5)
    figure = Figure(figsize=(9, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    last = history.steps[-1]
    first_averaged = history.steps[-history.averaged]
    axes.axvspan(first_averaged, last, color="#000000", alpha=0.06, linewidth=0)
    axes.annotate(
        f"learned weight = mean of the last {history.averaged} outer steps",
        xy=(last, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="#555555",
    )
    for rank, name in enumerate(order):
        axes.plot(
            history.steps,
            history.weights[name],
            color=COLOURS[rank % len(COLOURS)],
            linestyle=DASHES[rank // len(COLOURS) % len(DASHES)],
            linewidth=2 if rank < 3 else 1.4,
            zorder=3 - rank / len(order),
        )
    axes.set_xlim(min(history.steps[0], 0), max(last, 1))
    top = max(max(series) for series in history.weights.values())
    axes.set_ylim(0, min(1.0, top * 1.08) if top < 0.93 else 1.0)
    axes.set_xlabel("optimizer steps of the proxy")
    axes.set_ylabel("weight (share of samples)")
    axes.yaxis.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _label_ends(axes, order, learned, [history.weights[name][-1] for name in order], height)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(output_png, buffer.getvalue())


def _label_ends(
    axes: Axes,
    order: Sequence[str],
    learned: dict[str, float],
    ends: Sequence[float],
    height: float,
) -> None:
    low, high = axes.get_ylim()
    # Fractions of the axes; about 1.2 inches of the height are not axes.
    gap = LABEL_HEIGHT / (height - 1.2)
    heights = spread_out([(end - low) / (high - low) for end in ends], gap)
    for rank, (name, end, y) in enumerate(zip(order, ends, heights, strict=True)):
        colour = COLOURS[rank % len(COLOURS)]
        short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
        axes.annotate(
            f"{short}  {learned[name]:.3f}",
            xy=(1.0, (end - low) / (high - low)),
            xycoords="axes fraction",
            xytext=(1.035, y),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            fontweight="bold" if rank < 3 else "normal",
            color=colour,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.7,
                "linestyle": DASHES[rank // len(COLOURS) % len(DASHES)],
                "shrinkA": 2,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def spread_out(positions: Sequence[float], gap: float) -> list[float]:
    """Moves `positions` as little as need be so that neighbours are `gap` apart, within [0, 1].

    Where they cannot all fit, the gap shrinks to what does.
    """
    count = len(positions)
    if count > 1:
        gap = min(gap, 1 / (count - 1))
    order = sorted(range(count), key=lambda i: positions[i])
    placed: list[float] = []
    # Upwards so that nobody overlaps, then down from the top where that ran past it.
    for i in order:
        placed.append(max(positions[i], placed[-1] + gap) if placed else max(positions[i], 0.0))
    ceiling = 1.0
    for rank in reversed(range(count)):
        placed[rank] = min(placed[rank], ceiling)
        ceiling = placed[rank] - gap
    result = [0.0] * count
    for rank, i in enumerate(order):
        result[i] = placed[rank]
    return result

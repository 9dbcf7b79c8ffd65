"""What all pictures share: a sheet without a display, plain axes, a PNG that is written whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.report.palette import line_style

TEXT, FAINT, GRID = "#222222", "#666666", "#dddddd"


def new_figure(width: float, height: float) -> Figure:
    """A sheet of inches, 160 pixels each."""
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, x: str, y: str, *, size: float = 12) -> None:
    """Labels the axes and takes away what is no data; `size` of the labels in points."""
    axes.set_xlabel(x, fontsize=size, color=TEXT)
    axes.set_ylabel(y, fontsize=size, color=TEXT)
    axes.tick_params(labelsize=size - 1, colors=TEXT)
    axes.yaxis.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def styled(place: int) -> dict[str, Any]:
    """`line_style` as the arguments of `Axes.plot`."""
    colour, dashes = line_style(place)
    return {"color": colour, "linestyle": (0, dashes) if dashes else "-"}


def pixels(figure: Figure) -> np.ndarray:
    """The picture, (height, width, 3), uint8."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_png(figure: Figure, path: str | Path) -> None:
    """Writes the picture atomically, the same bytes for the same picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())

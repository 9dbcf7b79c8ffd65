"""Charts as PNG pictures, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.report.charts import Chart
from megatron_fastmix.report.svg import y_range

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is too pale on white.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6D00"),
)
REST = "#bbbbbb"


def write_png(chart: Chart, folder: str | Path) -> Path:
    """Draws `chart` to FOLDER/KEY.png, where characters that file names lack become `_`."""
    path = Path(folder) / f"{re.sub(r'[^0-9A-Za-z_.-]', '_', chart.key)}.png"
    figure = Figure(figsize=(9, 4.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [series for series in chart.series if series.points]
    for series in reversed(shown):
        colour = REST if series.colour is None else COLOURS[series.colour]
        if series.band:
            steps, low, high = zip(*series.band, strict=True)
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        width = 1.0 if series.colour is None else 2.0
        steps, values = zip(*series.points, strict=True)
        axes.plot(steps, values, color=colour, linewidth=width)
    if chart.line is not None:
        axes.axhline(chart.line, color="#888888", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(*y_range(chart))
    axes.set_title(chart.title, loc="left", fontsize=13, parse_math=False)
    axes.set_xlabel("optimizer steps of the proxy", fontsize=12)
    axes.set_ylabel(chart.unit, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.yaxis.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if len(shown) > 1:
        handles = [line for line in reversed(axes.lines) if line.get_linestyle() == "-"]
        named = [(h, s) for h, s in zip(handles, shown, strict=False) if s.colour is not None]
        legend = axes.legend(
            [handle for handle, _ in named],
            [series.name for _, series in named],
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
            fontsize=11,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
    return path

"""The picture of a running search for TensorBoard and Weights & Biases: weights over the steps, and
the advantage of each source with its standard error."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_fastmix.errors import DataError


def progress_picture(metrics: Path) -> np.ndarray | None:
    """Pixels of shape (height, width, 3), uint8; None before the second outer step."""
    from megatron_fastmix.report.charts import build_charts
    from megatron_fastmix.report.drawing import new_figure, pixels
    from megatron_fastmix.report.plots import draw_lines
    from megatron_fastmix.report.run_record import read_run

    try:
        run = read_run(metrics)
    except (DataError, OSError):  # a picture is no reason to stop a search
        return None
    if len(run.outer) < 2:
        return None
    newest = run.outer[-1]["weights"]
    order = sorted(newest, key=lambda name: -newest[name])
    sections = build_charts([run], order)
    shown = [c for found in sections.values() for c in found if c.key in ("weights", "alignment")]
    figure = new_figure(9, 4.6 * len(shown))
    for axes, chart in zip(figure.subplots(len(shown), squeeze=False).flat, shown, strict=True):
        draw_lines(axes, chart)
    return pixels(figure)

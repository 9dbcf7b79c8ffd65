"""Search cost against target loss."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from megatron_fastmix.lab.comparison.rows import Row
from megatron_fastmix.lab.comparison.statistics import by_mixture
from megatron_fastmix.report.drawing import new_figure, plain, write_png
from megatron_fastmix.report.palette import COLOURS


def plot_comparison(rows: Sequence[Row], search_flops: Mapping[str, float], path: Path) -> None:
    """Target loss over what the mixture cost to find, in trainings of the target model.

    A dot is a row. Uniform and proportional cost nothing and are lines. The best of the first n
    random draws costs n trainings: a random search.
    """
    figure = new_figure(9, 4.6)
    axes = figure.add_subplot()
    training = fmean([row.flops for row in rows])
    for colour, kind in zip(COLOURS, ("uniform", "proportional"), strict=False):
        losses = [row.loss for row in rows if row.kind == kind]
        if losses:
            axes.axhline(fmean(losses), color=colour, label=f"{kind}, no search")
    draws = [fmean([row.loss for row in g]) for g in by_mixture(rows, "random").values()]
    if draws:
        trainings = range(1, len(draws) + 1)
        best = list(itertools.accumulate(draws, min))
        axes.step(trainings, best, where="post", color=COLOURS[2], label="best random draw so far")
        axes.plot(trainings, draws, ".", color=COLOURS[2], alpha=0.5)
    singles = [fmean([row.loss for row in g]) for g in by_mixture(rows, "single").values()]
    if singles:
        axes.plot(
            [len(singles)],
            [min(singles)],
            "s",
            color=COLOURS[3],
            label="best single source, all tried",
        )
    learned = [row for row in rows if row.kind == "learned"]
    if learned:
        costs = [search_flops[row.mixture] / training for row in learned]
        axes.plot(costs, [row.loss for row in learned], "o", color=COLOURS[4], label="learned")
    plain(
        axes,
        "cost of finding the mixture, in trainings of the target model",
        "target loss, nats per token",
    )
    axes.set_xlim(left=0)
    axes.legend(fontsize=11, frameon=False)
    write_png(figure, path)

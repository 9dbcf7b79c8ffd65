"""Whether a mixture travels: searches of other proxies, lengths and learning rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes

from megatron_fastmix.config import strict_yaml
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.registry import FASTMIX
from megatron_fastmix.lab.comparison.config import flatten
from megatron_fastmix.lab.comparison.method_lines import UNIFORM, MethodLine, behind
from megatron_fastmix.lab.comparison.scenario import Scenario
from megatron_fastmix.lab.comparison.statistics import standard_deviation
from megatron_fastmix.report.drawing import FAINT, TEXT, new_figure, plain, styled, write_png

_LENGTH = {"training.train_iters", "training.lr_warmup_iters"}
_SIZE = {"proxy.num_layers", "proxy.hidden_size", "proxy.num_attention_heads"}
_RATE = {"training.lr", "training.min_lr"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One variant, or FastMix itself."""

    line: MethodLine
    series: str
    """What it differs from FastMix in but for its length, in words."""
    steps: int
    """Optimizer steps of its proxy."""


def points(scenario: Scenario, lines: Sequence[MethodLine]) -> list[Point]:
    """FastMix and the variants that have rows, in the order of series and length."""
    names = [FASTMIX, *(variant.name for variant in scenario.variants)]
    there = {line.method: line for line in lines}
    usual = flatten(strict_yaml.to_dict(scenario.searches[FASTMIX]))
    found = []
    for name in names:
        if name in there:
            config = scenario.searches[name]
            now = flatten(strict_yaml.to_dict(config))
            other = {key for key in now if now[key] != usual.get(key)} - _LENGTH - _SIZE
            series = f"{config.proxy.num_layers} × {config.proxy.hidden_size}"
            if other & _RATE:
                series += f", learning rate {config.training.lr:g}"
            if other - _RATE:
                series = name
            found.append(Point(line=there[name], series=series, steps=config.training.train_iters))
    order = list(dict.fromkeys(point.series for point in found))
    return sorted(found, key=lambda point: (order.index(point.series), point.steps))


def plot_variants(scenario: Scenario, lines: Sequence[MethodLine], path: Path) -> None:
    """Left, distance from FastMix's mixture; right, target loss behind FastMix's, seed by seed;
    both over the cost of the search. Points are marked with the steps of the proxy.

    Raises `ConfigError` where there are no rows of FastMix with two seeds.
    """
    found = points(scenario, lines)
    ours = next((point.line for point in found if point.line.method == FASTMIX), None)
    if ours is None or len(ours.weights_by_seed) < 2:
        raise ConfigError("--plot-variants: needs rows of fastmix with two seeds or more")
    figure = new_figure(11, 5)
    left, right = figure.subplots(1, 2)
    _draw(left, found, ours, lambda line: _mean_and_error(line.distances(ours)))
    _across(left, fmean(ours.distances(ours)), "two seeds\nof FastMix")
    plain(left, _COST, "share of the mixture on other sources than FastMix's", size=10.5)
    left.set_ylim(bottom=0)
    _draw(right, found, ours, lambda line: _behind(line, ours))
    uniform = next((line for line in lines if line.method == UNIFORM), None)
    if uniform is not None:
        _across(right, behind(uniform, ours)[0], "uniform")
    right.axhline(0.0, color=FAINT, linewidth=1.2, zorder=1)
    plain(right, _COST, "target loss behind FastMix's, nats per token", size=10.5)
    figure.legend(
        *right.get_legend_handles_labels(),
        title="proxy, layers × width (at the points: its steps)",
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    write_png(figure, path)


_COST = "search cost, as a multiple of FastMix's"


def _behind(line: MethodLine, ours: MethodLine) -> tuple[float, float]:
    if line is ours:
        return 0.0, 0.0
    difference, error = behind(line, ours)
    return difference, error or 0.0


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    deviation = standard_deviation(values)
    return fmean(values), (deviation or 0.0) / len(values) ** 0.5


def _draw(
    axes: Axes,
    found: Sequence[Point],
    ours: MethodLine,
    measure: Callable[[MethodLine], tuple[float, float]],
) -> None:
    for place, series in enumerate(dict.fromkeys(point.series for point in found)):
        mine = [point for point in found if point.series == series]
        costs = [point.line.flops / ours.flops for point in mine]
        values, errors = zip(*(measure(point.line) for point in mine), strict=True)
        axes.errorbar(
            costs, values, yerr=errors, **styled(place), marker="o", markersize=6, label=series
        )
        for point, cost, value in zip(mine, costs, values, strict=True):
            axes.annotate(
                f"{point.steps}",
                xy=(cost, value),
                xytext=(5, 5),
                textcoords="offset points",
                fontsize=9,
                color=TEXT,
            )
    axes.set_xscale("log")
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20]
    low, high = axes.get_xlim()
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:g}×" for tick in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, 1.5 * high)  # room for the words at the last points


def _across(axes: Axes, value: float, words: str) -> None:
    axes.axhline(value, color=FAINT, linewidth=1.2, linestyle=(0, (4.0, 2.0)), zorder=1)
    axes.annotate(
        words,
        xy=(1.01, value),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=9.5,
        color=FAINT,
    )

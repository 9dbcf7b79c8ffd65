"""The path of the mixture through a run, taken from its metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_fastmix.errors import DataError
from megatron_fastmix.mixture import averaged_steps


@dataclass(frozen=True, kw_only=True)
class WeightHistory:
    """Weights by source over the outer steps, the start of the run included."""

    steps: list[int]
    """Optimizer steps at which the weights were set; T of them."""
    weights: dict[str, list[float]]
    """T weights by source name."""
    averaged: int
    """How many of the last iterates the learned weights average."""

    @property
    def mean(self) -> dict[str, float]:
        """The average over the averaged tail: the learned weights."""
        return {name: _mean(series[-self.averaged :]) for name, series in self.weights.items()}

    @property
    def std(self) -> dict[str, float]:
        """Standard deviation over the averaged tail."""
        spread = {}
        for name, series in self.weights.items():
            tail = series[-self.averaged :]
            centre = _mean(tail)
            spread[name] = math.sqrt(_mean([(weight - centre) ** 2 for weight in tail]))
        return spread


def weight_history(
    lines: Sequence[dict[str, Any]], *, averaged: int | None = None
) -> WeightHistory:
    """The history in `lines` of `read_metrics`.

    `averaged` is the number of iterates that the learned weights average; by default it follows
    from `mixture.averaging_fraction` in the run line's configuration (half without one). Raises
    `DataError` where no outer step has been logged yet.
    """
    outer = [line for line in lines if line["kind"] == "outer" and line.get("weights")]
    if not outer:
        raise DataError("the metrics hold no outer step yet; wait for the first one")
    names = list(outer[0]["weights"])
    steps = [line["step"] for line in outer]
    weights = {name: [float(line["weights"][name]) for line in outer] for name in names}
    run = next((line for line in lines if line["kind"] == "run"), {})
    start = run.get("initial_weights")
    if averaged is None:
        config = run.get("config", {}).get("mixture", {})
        averaged = averaged_steps(len(outer), config.get("averaging_fraction", 0.5))
    averaged = min(averaged, len(outer))
    if start:
        steps = [0, *steps]
        weights = {name: [float(start[name]), *series] for name, series in weights.items()}
    return WeightHistory(steps=steps, weights=weights, averaged=averaged)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

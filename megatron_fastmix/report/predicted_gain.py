"""What the learned mixture gains over another one, predicted from the logged products.

An optimizer step of the proxy of size η on mixture α moves the target loss by −η·Σ_k α_k P_k to
first order, with P_k = ⟨v, ∇L_k⟩; so a step on α rather than α⁰ lowers it by a further
η·Σ_k (α_k − α⁰_k) P_k. Summed over the search, each outer step standing for the optimizer steps
since the one before, that is how much lower the target loss would be at its end, had each of its
steps been taken on α rather than on α⁰ from where the proxy stood.

What an earlier step on another mixture changes for a later one is left out. So the sum says too
little of late steps: at an optimum all sources inside their bounds have equal products, whichever
mixture one compares with, while a proxy that was trained on α⁰ would have the gain still before it.

With `hypergradient.preconditioner: none` the steps are those of plain gradient descent at the
proxy's learning rate, while the proxy takes larger ones with AdamW: then sign, error and the ratio
of two gains mean something, and the size does not. With `adam` the products hold AdamW's scale.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_fastmix.report.quantiles import student_95
from megatron_fastmix.report.run_record import RunRecord, is_number

FEWEST_BATCHES = 10
"""Of a series whose standard error is taken from batch means."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How much lower a target loss is on the learned mixture than on another."""

    value: float
    """Nats per loss token; positive where the learned mixture is better."""
    error: float | None
    """Its standard error; None where it is not known."""
    freedom: int | None = None
    """Degrees of freedom of the error: seeds less one. None of an error that is not over seeds."""

    @property
    def clear(self) -> bool:
        """Whether it is beyond the 95 % point of Student's t from 0; without degrees of freedom,
        beyond two standard errors."""
        bound = 2.0 if self.freedom is None else student_95(self.freedom)
        return self.error is not None and abs(self.value) > bound * self.error


@dataclass(frozen=True, kw_only=True)
class Prediction(Gain):
    """A gain from the products."""

    steps: int
    """Optimizer steps that it is summed over."""
    seeds: int
    """Searches that it averages; with several the error is that over the seeds."""


def predict(
    runs: Sequence[RunRecord], learned: Mapping[str, float], other: Mapping[str, float]
) -> Prediction | None:
    """The gain of `learned` over `other` in repeats of one search; None without products.

    The error of a single search is that of its products alone: another seed may end elsewhere.
    """
    found = [each for run in runs if (each := _predict(run, learned, other)) is not None]
    if len(found) < 2:
        return found[0] if found else None
    values = [each.value for each in found]
    return Prediction(
        value=statistics.fmean(values),
        error=statistics.stdev(values) / math.sqrt(len(values)),
        freedom=len(values) - 1,
        steps=found[0].steps,
        seeds=len(found),
    )


def _predict(
    run: RunRecord, learned: Mapping[str, float], other: Mapping[str, float]
) -> Prediction | None:
    rates = dict(run.figure("inner", "lr"))
    expected = _expected_samples(run)
    gains, variances, steps = [], [], 0
    start: dict[str, Any] = {"step": 0}
    centre: float | None = None
    for before, line in itertools.pairwise([start, *run.outer]):
        products, rate = line.get("products"), rates.get(line["step"])
        if not isinstance(products, dict) or rate is None:
            continue
        changes = {name: learned[name] - other[name] for name in learned}
        if not all(is_number(products.get(name)) for name in learned):
            if expected is None:
                continue
            mean = _sample_mean(line)
            products, changes = _of_drawn(
                line, changes, expected, mean if centre is None else centre
            )
            centre = mean
        count = line["step"] - before["step"]
        errors = line.get("products_standard_error") or {}
        known = all(is_number(errors.get(name)) for name in learned)
        gains.append(count * rate * math.fsum(changes[n] * products[n] for n in changes))
        square = math.fsum((changes[n] * errors[n]) ** 2 for n in changes) if known else math.nan
        variances.append((count * rate) ** 2 * square)
        steps += count
    if not gains:
        return None
    return Prediction(
        value=math.fsum(gains),
        error=_sum_error(np.array(gains), math.fsum(variances)),
        steps=steps,
        seeds=1,
    )


def _expected_samples(run: RunRecord) -> dict[str, float] | None:
    """Samples of each source in a drawn probe, on average; None of one that is to hold them all."""
    total = run.config.get("hypergradient", {}).get("probe_samples")
    if not is_number(total):
        return None
    groups = {name: name for name in run.sources}
    if run.config.get("mixture", {}).get("learn") == "groups":
        groups |= {s["name"]: s["group"] for s in run.config["sources"] if s.get("group")}
    weights: dict[str, float] = dict.fromkeys(groups.values(), 0.0)
    for name, group in groups.items():
        weights[group] += run.initial[name]
    return {
        name: total / len(weights) * run.initial[name] / weights[group]
        for name, group in groups.items()
    }


def _sample_mean(line: Mapping[str, Any]) -> float:
    """Of the products of a drawn probe's samples."""
    samples = line.get("probe_samples") or {}
    held = [name for name, value in line["products"].items() if is_number(value)]
    total = math.fsum(samples.get(name, 0) for name in held)
    return math.fsum(samples.get(n, 0) * line["products"][n] for n in held) / max(total, 1)


def _of_drawn(
    line: Mapping[str, Any],
    changes: Mapping[str, float],
    expected: Mapping[str, float],
    centre: float,
) -> tuple[dict[str, float], dict[str, float]]:
    """Products and changes of the sources that a drawn probe held, whose sum is on average that
    over all: a source counts by its samples over the expected ones (Horvitz and Thompson, 1952).
    Products are less `centre`, which takes most of their noise and, since changes of all the
    sources add up to 0, moves no mean where it is of another draw."""
    samples = line.get("probe_samples") or {}
    held = [name for name in changes if is_number(line["products"].get(name)) and samples.get(name)]
    return (
        {name: line["products"][name] - centre for name in held},
        {name: changes[name] * samples[name] / expected[name] for name in held},
    )


def _sum_error(gains: np.ndarray, variance: float) -> float | None:
    """Standard error of Σ gains: the larger of what the products' own errors give and of batch
    means, which see noise of v and dependence between neighbours too. It is that of the means'
    successive differences (von Neumann et al. 1941), since gains fall while the mixture arrives."""
    errors = [math.sqrt(variance)] if math.isfinite(variance) else []
    length = 1
    while len(gains) // length >= FEWEST_BATCHES:
        count = len(gains) // length
        means = gains[len(gains) - count * length :].reshape(count, length).mean(axis=1)
        squares = np.diff(means) ** 2
        errors.append(len(gains) * math.sqrt(squares.mean() / (2 * count)))
        length *= 2
    return max(errors, default=None)

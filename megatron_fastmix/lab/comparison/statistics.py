"""Means, spreads and verdicts over finished rows; pure functions.

A difference in favour of the learned mixture must exceed `CLEAR` pooled standard deviations to
count; one against it counts from a single standard deviation of the learned mixture's losses on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev, variance

import numpy as np

from megatron_fastmix.lab.comparison.rows import Row
from megatron_fastmix.lab.measurements import Measurement

CLEAR = 2.0
"""Pooled standard deviations from which on a difference is taken as real."""


def standard_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n − 1); None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None


def total_variation(one: Mapping[str, float], two: Mapping[str, float]) -> float:
    """Distance of two mixtures of the same sources: the share that is on other ones, 0 to 1."""
    return sum(abs(one[name] - two[name]) for name in one) / 2


def pooled_deviation(*groups: Sequence[float]) -> float | None:
    """√(Σ (n_g − 1)·s_g² / Σ (n_g − 1)); None where no group has two values."""
    degrees = sum(len(group) - 1 for group in groups if group)
    if degrees < 1:
        return None
    squares = [(len(group) - 1) * variance(group) for group in groups if len(group) > 1]
    return math.sqrt(math.fsum(squares) / degrees)


def separation(other: Sequence[float], learned: Sequence[float]) -> float | None:
    """(mean of `other` − mean of `learned`) over their pooled deviation; None if that is unknown.

    Infinite where both repeat exactly yet differ, 0 where they are equal.
    """
    spread = pooled_deviation(other, learned)
    if spread is None:
        return None
    difference = fmean(other) - fmean(learned)
    if spread == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / spread


def better_beyond_spread(groups: Sequence[Sequence[float]], learned: Sequence[float]) -> int | None:
    """How many of `groups` have a mean lower than that of `learned` by more than its deviation.

    None where `learned` has fewer than two values.
    """
    spread = standard_deviation(learned)
    if spread is None:
        return None
    return sum(fmean(group) < fmean(learned) - spread for group in groups)


def evaluation_error(
    shares: Mapping[str, float], rows: Sequence[Row], base: Sequence[Row] = ()
) -> float:
    """Standard error of the mean loss of `rows`, minus that of `base`, from the finite tests.

    `shares` are those of the tests in the loss. All rows are evaluated on the same samples, so a
    difference is known better than its two sides. The loss is a ratio, Σ losses / Σ tokens, whose
    error is that of what each sample's loss is beyond its tokens' share (Cochran, Sampling
    Techniques, 1977, section 2.11).
    """
    squares = 0.0
    for test, share in shares.items():
        losses = np.mean([row.sample_losses[test] for row in rows], axis=0)
        if base:
            losses = losses - np.mean([row.sample_losses[test] for row in base], axis=0)
        sizes = np.array(rows[0].sample_sizes.get(test) or [1.0])
        losses = losses - np.mean(losses) * sizes
        if len(losses) > 1:
            squares += (share * float(np.std(losses, ddof=1))) ** 2 / len(losses)
    return math.sqrt(squares)


def by_mixture(rows: Sequence[Row], kind: str | None = None) -> dict[str, list[Row]]:
    """Rows of each mixture, optionally of one kind, in the order of their first row."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if kind in (None, row.kind):
            groups.setdefault(row.mixture, []).append(row)
    return groups


def measurements(rows: Sequence[Row], search_flops: Sequence[float]) -> list[Measurement]:
    """Every number that `rows` allow; `search_flops` of each learned mixture.

    Several learned mixtures count as one, so that its spread holds that of the search too.
    """
    learned = [row.loss for row in rows if row.kind == "learned"]
    found = []
    if learned:
        found.append(_loss("learned target loss", fmean(learned)))
        name = "learned target loss, standard deviation"
        found.append(_loss(name, standard_deviation(learned)))
    for kind in ("uniform", "proportional"):
        losses = [row.loss for row in rows if row.kind == kind]
        if not losses:
            continue
        found.append(_loss(f"{kind} target loss", fmean(losses)))
        value = separation(losses, learned) if learned else None
        found.append(
            Measurement(
                figure=f"{kind} minus learned over pooled sd",
                # JSON has no infinity, and no spread at all is no evidence of one.
                value=None if value is None or math.isinf(value) else value,
                reach=CLEAR,
                better="higher",
                unit="standard deviations",
            )
        )
    for kind, what, reach in (("random", "random draw", 0.0), ("single", "single source", None)):
        groups = [[row.loss for row in group] for group in by_mixture(rows, kind).values()]
        if not groups:
            continue
        found.append(_loss(f"best {what}, target loss", min(map(fmean, groups))))
        found.append(
            Measurement(
                figure=f"{what}s better than learned beyond the spread",
                value=better_beyond_spread(groups, learned),
                reach=reach,
                unit=f"of {len(groups)}",
            )
        )
    cost = fmean(search_flops) if search_flops else None
    ratio = cost / fmean([row.flops for row in rows]) if cost is not None and rows else None
    return [
        *found,
        Measurement(figure="search cost", value=cost, unit="FLOPs, outer steps included"),
        Measurement(
            figure="search cost over one target training",
            value=ratio,
            unit="ratio of FLOPs, outer steps included",
        ),
    ]


def _loss(figure: str, value: float | None) -> Measurement:
    return Measurement(figure=figure, value=value, unit="nats per token")

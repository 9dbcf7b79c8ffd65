"""First-order optimality: whether a search is done, told from the advantages of its sources.

With the gain p_k = ⟨v, ∇L_k⟩ of each source (less the regularizer's pull), the advantage of source
k is A_k = p_k − Σ_i α_i p_i, in one outer step over all sources i, and in the verdict over those
inside their bounds. At an optimum A_k = 0 for each of these, A_k ≤ 0 for one at its lower bound and
A_k ≥ 0 for one at its upper. Pure NumPy; T outer steps, K sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from megatron_fastmix.mixture.simplex import dot

CLEAR = 3.0
"""Standard errors from 0 beyond which an advantage, or a trend of a weight, counts."""
FEWEST_OUTER_STEPS = 40
"""Below so many outer steps a search is too short to be judged."""
FLAT = 0.02
"""A weight that changes by less between the halves of the averaged part is at rest."""
_LEAST_BATCHES = 5
_CLEAR_AT_ANY_STEP = 4.0
"""As CLEAR, where every outer step of a search looks again and would by chance find 3 in time."""

Status = Literal["settled", "too_short", "moving", "not_optimal"]


def advantages(
    gains: np.ndarray, errors: np.ndarray, weights: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A_k and its standard error in one outer step, (K,) each; NaN for sources that are not seen.

    Args:
        gains: p_k, shape (K,).
        errors: their standard errors, independent between sources, (K,); NaN where unknown, which
            leaves all unknown.
        weights: α, shape (K,).
        seen: bool, shape (K,).
    """
    alpha = np.where(seen, weights, 0.0)
    if alpha.sum() == 0:
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    alpha = alpha / alpha.sum()
    value = gains - dot(alpha, np.where(seen, gains, 0.0))
    squares = np.where(seen, errors, 0.0) ** 2
    # p_k itself has the factor 1 − α_k, every other one α_i.
    variance = (1 - 2 * alpha) * squares + (alpha**2 * squares).sum()
    return np.where(seen, value, np.nan), np.where(seen, np.sqrt(variance), np.nan)


class Evidence:
    """Whether the advantages of a search have ever told its K sources apart, all its steps so far
    taken together. Once they have, it stays so: the mixture follows them, and near the optimum that
    it reaches advantages are 0 and their sum is drowned again."""

    def __init__(self, sources: int) -> None:
        self._total, self._variance = np.zeros((2, sources))
        self.tells_apart = False

    def add(self, advantage: ArrayLike, standard_error: ArrayLike) -> None:
        """Of one outer step, (K,) each; NaN where unknown."""
        value, error = np.asarray(advantage, dtype=float), np.asarray(standard_error, dtype=float)
        known = np.isfinite(value) & np.isfinite(error)
        self._total += np.where(known, value, 0.0)
        self._variance += np.where(known, error, 0.0) ** 2
        clear = np.abs(self._total) > _CLEAR_AT_ANY_STEP * np.sqrt(self._variance)
        self.tells_apart |= bool(np.any(clear & (self._variance > 0)))


def series_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a series over its first axis and the standard error of it, without NaN entries.

    By batch means (Conway, 1963): neighbours in the series are correlated, means of runs of them
    less so. The largest error over runs of 1, 2, 4, ... with at least 5 runs is taken.
    Returns NaN where fewer than 5 entries are known. Shapes (T, ...) to (...).
    """
    if not len(values):
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    flat = values.reshape(len(values), -1)
    found = np.array([_series_mean(column) for column in flat.T]).reshape(-1, 2)
    shape = values.shape[1:]
    return found[:, 0].reshape(shape), found[:, 1].reshape(shape)


def _series_mean(column: np.ndarray) -> tuple[float, float]:
    known = column[np.isfinite(column)]
    if len(known) < _LEAST_BATCHES:
        return float("nan"), float("nan")
    errors, length = [], 1
    while len(known) // length >= _LEAST_BATCHES:
        count = len(known) // length
        means = known[len(known) - count * length :].reshape(count, length).mean(axis=1)
        errors.append(means.std(ddof=1) / np.sqrt(count))
        length *= 2
    return float(known.mean()), float(max(errors))


@dataclass(frozen=True, kw_only=True)
class Optimality:
    """What the averaged part of a search says about its being done."""

    status: Status
    advantage: tuple[float, ...]
    """Mean A_k over the sources inside their bounds, (K,): what those at a bound earn is no price
    that weight could be moved at. NaN where it is not known."""
    standard_error: tuple[float, ...]
    """Of that mean, (K,)."""
    text: str
    """One or two sentences for users: the verdict, the source and the remedy."""


def judge_optimality(
    names: Sequence[str],
    advantage: np.ndarray,
    weights: np.ndarray,
    *,
    outer_steps: int,
    lower: Sequence[float],
    upper: Sequence[float],
    held: np.ndarray | None = None,
) -> Optimality:
    """The verdict on the averaged part of a search.

    Args:
        advantage: A_k of each outer step of that part, (T, K).
        weights: α before each of these steps, (T, K).
        outer_steps: of the whole search.
        lower, upper: bounds of α, (K,).
        held: what each source is compared with, int (K,): those of a group at a bound of its own
            with each other alone, since no weight may pass that bound; None for all with all.
    """
    mean, error = np.full((2, len(names)), np.nan)
    at_rest = np.zeros(len(names), dtype=bool)
    blocks = np.zeros(len(names), dtype=int) if held is None else held
    for block in np.unique(blocks):
        mine = blocks == block
        mean[mine], error[mine], at_rest[mine] = over_the_free(
            advantage[:, mine], weights[:, mine], np.asarray(lower)[mine], np.asarray(upper)[mine]
        )

    def found(status: Status, text: str) -> Optimality:
        return Optimality(
            status=status,
            advantage=tuple(mean.tolist()),
            standard_error=tuple(error.tolist()),
            text=text,
        )

    if outer_steps < FEWEST_OUTER_STEPS:
        return found(
            "too_short",
            f"Too short to tell: {outer_steps} outer steps, and {FEWEST_OUTER_STEPS} are the "
            "least; raise training.train_iters or lower mixture.inner_steps.",
        )
    if np.isnan(mean).all():
        return found("too_short", "Too short to tell: no advantages of this search are known.")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(at_rest | (mean == 0), 0.0, np.nan_to_num(mean / error))
    worst = int(np.argmax(np.abs(ratios)))
    clear = _clear_of(int(np.isfinite(mean).sum()))
    if abs(ratios[worst]) > clear:
        more = "gain" if ratios[worst] > 0 else "lose"
        return found(
            "not_optimal",
            f"Not at an optimum: {names[worst]} should {more} weight, its advantage is "
            f"{mean[worst]:+.2g} ± {error[worst]:.2g} ({ratios[worst]:+.1f} standard errors); "
            "search longer (training.train_iters) or with a larger mixture.lr.",
        )
    moved, doubt = _trend(weights)
    largest = int(np.argmax(np.where(np.abs(moved) > CLEAR * doubt, np.abs(moved), 0.0)))
    if abs(moved[largest]) >= FLAT and abs(moved[largest]) > CLEAR * doubt[largest]:
        return found(
            "moving",
            f"Still moving: {names[largest]} changed by {moved[largest]:+.3f} between the halves "
            "of the averaged part; search longer (training.train_iters).",
        )
    return found(
        "settled",
        f"Settled: no source inside its bounds has an advantage beyond {clear:.2g} standard "
        "errors, and no weight has a trend.",
    )


def _clear_of(count: int) -> float:
    """CLEAR, or more where one of so many sources would be beyond it by chance in over 5 %."""
    return max(CLEAR, NormalDist().inv_cdf(1 - 0.025 / max(1, count)))


def at_bounds(
    share: ArrayLike, lower: ArrayLike, upper: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Which weights `share` are next to their lower and to their upper bounds, bool (K,) each."""
    weights = np.asarray(share, dtype=float)
    near = min(0.01, 0.1 / len(weights))
    return weights < np.asarray(lower) + near, weights > np.asarray(upper) - near


def over_the_free(
    advantage: np.ndarray, weights: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean advantage over the sources inside their bounds, its standard error, and whether a bound
    holds the source, (K,) each; from A and α of T steps, (T, K), and the bounds, (K,).

    Against the mean over all, the many that are held at 0 would lend the others an advantage.
    """
    if not len(advantage):
        unknown = np.full(len(lower), np.nan)
        return unknown, unknown, np.zeros(len(lower), dtype=bool)
    at_lower, at_upper = at_bounds(weights.mean(axis=0), lower, upper)
    free = ~(at_lower | at_upper)
    if not free.any():
        free = _first_to_move(advantage, at_lower & ~at_upper, at_upper & ~at_lower)
    alpha = np.where(free & np.isfinite(advantage), weights, 0.0)
    total = alpha.sum(axis=1, keepdims=True)
    base = (alpha * np.nan_to_num(advantage)).sum(axis=1, keepdims=True)
    mean, error = series_mean(advantage - base / np.where(total > 0, total, np.nan))
    # What is left of a source that is free alone is rounding.
    nothing = np.abs(mean) < 1e-9 * np.nanmax(np.abs(advantage), initial=0.0)
    mean = np.where(nothing, 0.0, mean)
    return mean, error, (at_lower & (mean < 0)) | (at_upper & (mean > 0))


def _first_to_move(advantage: np.ndarray, at_lower: np.ndarray, at_upper: np.ndarray) -> np.ndarray:
    """Whose gain is the price of weight where all K are at a bound, bool (K,): the first to give
    weight, of those at their upper bounds the one that gains least; where there is none the first
    to take it, the one at its lower bound that gains most; else all."""
    mean, _ = series_mean(advantage)
    if not (at_lower | at_upper).any():
        return np.ones(len(mean), dtype=bool)
    movable, sign = (at_upper, 1.0) if at_upper.any() else (at_lower, -1.0)
    first = np.argmin(np.where(movable & np.isfinite(mean), sign * mean, np.inf))
    return np.arange(len(mean)) == first


def _trend(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Change of each weight between the halves, and its standard error, (K,) each."""
    half = len(weights) // 2
    (before, one), (after, other) = series_mean(weights[:half]), series_mean(weights[half:])
    return after - before, np.sqrt(one**2 + other**2)

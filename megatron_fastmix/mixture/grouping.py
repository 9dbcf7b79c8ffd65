"""Groups of sources that share one logit, with fixed shares inside: α_k = a_g·s_k.

K sources, G groups; a_g is the weight of group g, s_k the share of source k inside its own group.
With y_g the group's logit, z_k = y_g + log s_k gives α = softmax(z) and a = softmax(y), so that one
chain leads from products of sources to logits of groups: ∂ℓ/∂a_g = Σ_{k in g} s_k·∂ℓ/∂α_k. Where
every source is a group of its own all of it is the identity, bit for bit. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_fastmix.mixture.simplex import safe_log

Bounds = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]
"""Least and largest weights."""


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Which sources share a logit, and in which shares."""

    names: tuple[str, ...]
    """Of the G groups, in the order of their first sources."""
    members: np.ndarray
    """The group of each source, int (K,)."""
    shares: np.ndarray
    """s, the share of each source inside its group, float64 (K,); they sum to 1 in each group."""

    @classmethod
    def of(cls, labels: Sequence[str], weights: Sequence[float] | np.ndarray) -> Grouping:
        """Sources with the same label are a group; their shares are proportional to `weights`,
        positive, (K,)."""
        names = tuple(dict.fromkeys(labels))
        number = {name: g for g, name in enumerate(names)}
        members = np.array([number[label] for label in labels], dtype=np.int64)
        weights = np.asarray(weights, dtype=np.float64)
        shares = weights / np.bincount(members, weights, len(names))[members]
        return cls(names=names, members=members, shares=shares)

    @classmethod
    def singletons(cls, names: Sequence[str]) -> Grouping:
        """Every source a group of its own."""
        return cls.of(names, np.ones(len(names)))

    @property
    def is_trivial(self) -> bool:
        """Whether every source is a group of its own."""
        return len(self.names) == len(self.members)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Σ over the sources of each group, (..., K) to (..., G)."""
        if self.is_trivial:
            return values
        flat = values.reshape(-1, len(self.members))
        found = [np.bincount(self.members, row, len(self.names)) for row in flat]
        return np.array(found, dtype=float).reshape(*values.shape[:-1], len(self.names))

    def source_weights(self, weights: np.ndarray) -> np.ndarray:
        """α_k = a_g·s_k, (..., G) to (..., K)."""
        found: np.ndarray = weights[..., self.members] * self.shares
        return found

    def source_logits(self, logits: np.ndarray) -> np.ndarray:
        """z_k = y_g + log s_k, (G,) to (K,)."""
        return logits[self.members] + np.where(self.shares == 1, 0.0, safe_log(self.shares))

    def parts(self, seen: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
        """What each source counts for in the mean of its group, (K,): 0 without evidence, the
        others summing to 1 in every group that has any.

        Proportional to s, or to the samples `counts` (K,) where these were drawn by s, which makes
        the mean one over samples and so free of bias also where a source drew none.
        """
        weights = np.where(seen, self.shares if counts is None else counts, 0.0)
        if self.is_trivial:
            return np.where(weights > 0, 1.0, 0.0)
        total = self.sums(weights)[self.members]
        return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)

    def mean(self, parts: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Σ parts_k·values_k of each group, (K,) to (G,); values of parts 0 are ignored."""
        return self.sums(np.where(parts > 0, parts * values, 0.0))

    def mean_error(
        self, parts: np.ndarray, values: np.ndarray, errors: np.ndarray, counts: np.ndarray
    ) -> np.ndarray:
        """Standard error of `mean` over the probe's samples, (G,), from those of the sources (K,).

        Where a group has a source without a known error, its sources' values are taken as draws
        around the group's mean, which is too wide rather than too narrow.
        """
        if self.is_trivial:
            return np.where(parts > 0, errors, np.nan)
        squares = self.sums(np.where(parts > 0, parts * np.nan_to_num(errors), 0.0) ** 2)
        lacking = self.sums(((parts > 0) & ~np.isfinite(errors)).astype(float)) > 0
        centre = self.mean(parts, values)[self.members]
        around = self.sums(np.where(parts > 0, parts * (values - centre) ** 2, 0.0))
        samples = self.sums(np.where(parts > 0, counts, 0.0))
        between = np.where(samples > 1, around / np.maximum(samples - 1, 1), np.nan)
        return np.sqrt(np.where(lacking, squares + between, squares))

    def seen(self, seen: np.ndarray) -> np.ndarray:
        """Groups with evidence for one source at least, bool (K,) to (G,)."""
        if self.is_trivial:
            return seen
        return self.sums(seen.astype(float)) > 0

    def bounds(self, sources: Bounds, groups: Bounds | None = None) -> tuple[np.ndarray, ...]:
        """(lower, upper) of a, (G,) each: what the bounds of the groups (G,) and those of their
        sources (K,) leave, since α_k = a_g·s_k."""
        if self.is_trivial and groups is None:
            return np.asarray(sources[0], float), np.asarray(sources[1], float)
        lower, upper = (np.asarray(each, float) / self.shares for each in sources)
        found = [np.full(len(self.names), fill) for fill in (0.0, 1.0)]
        np.maximum.at(found[0], self.members, lower)
        np.minimum.at(found[1], self.members, upper)
        if groups is not None:
            found = [
                np.maximum(found[0], np.asarray(groups[0], float)),
                np.minimum(found[1], np.asarray(groups[1], float)),
            ]
        return found[0], found[1]

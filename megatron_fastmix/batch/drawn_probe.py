"""Samples of a probe of fixed size, drawn anew in every outer step: which sources get how many.

Pure functions of (seed, outer step), so equal on all ranks and after a resume.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from megatron_fastmix.mixture.grouping import Grouping

_STREAMS = {"probe": 0x9B0BE, "objective": 0x0B1EC}


def generator_of(
    seed: int, outer_step: int, stream: Literal["probe", "objective"]
) -> np.random.Generator:
    """The random numbers of one outer step's probe, or of its β term."""
    return np.random.default_rng([_STREAMS[stream], seed, outer_step])


def draw_counts(expected: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Systematic sampling (Madow, 1949) in a random order: int counts of the shape of `expected`.

    Each count has the mean `expected` exactly and is it rounded up or down; the sum is that of
    `expected`, which must be whole. One random start and one order serve all.
    """
    order = random.permutation(len(expected))
    ends = np.cumsum(expected[order]) + random.random()
    # The last end lies at a whole number past the start, give or take what additions round off.
    total = round(float(expected.sum()))
    marks = np.minimum(np.floor(ends).astype(np.int64), total)
    marks[-1] = total
    counts = np.zeros(len(expected), dtype=np.int64)
    counts[order] = np.diff(marks, prepend=0)
    return counts


def draw_probe(total: int, grouping: Grouping, random: np.random.Generator) -> np.ndarray:
    """Samples of each source, int (K,), `total` together.

    Every group has the same expected number, and its own are drawn among its sources by their
    shares: given the group's number n_g, source k has n_g·s_k on average, so that the mean over the
    group's samples is free of bias. With fewer samples than groups some have none in this step.
    """
    groups = len(grouping.names)
    by_group = draw_counts(np.full(groups, total / groups), random)
    if grouping.is_trivial:
        return by_group
    counts = np.zeros(len(grouping.members), dtype=np.int64)
    for g in np.flatnonzero(by_group):
        mine = np.flatnonzero(grouping.members == g)
        counts[mine] = draw_counts(by_group[g] * grouping.shares[mine], random)
    return counts

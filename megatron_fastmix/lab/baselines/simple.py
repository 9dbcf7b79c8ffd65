"""Mixtures that need no training: functions of the sources' sizes alone."""

from __future__ import annotations

import numpy as np

from megatron_fastmix.lab.baselines.result import BaselineResult
from megatron_fastmix.lab.baselines.settings import TEMPERATURE, UniMaxSettings


def uniform(sizes: np.ndarray) -> BaselineResult:
    """The same share for each of K sources; `sizes` are their tokens (K,)."""
    return _free(np.full(len(sizes), 1 / len(sizes)))


def proportional(sizes: np.ndarray) -> BaselineResult:
    """Shares by size, as concatenating all data gives them."""
    return temperature(sizes, 1.0)


def temperature(sizes: np.ndarray, temperature: float = TEMPERATURE) -> BaselineResult:
    """p_k ∝ n_k^(1/T): between proportional, T = 1, and uniform, T → ∞."""
    scaled = np.asarray(sizes, dtype=np.float64) ** (1 / temperature)
    return _free(scaled / scaled.sum())


def random_draw(sizes: np.ndarray, seed: int) -> BaselineResult:
    """A mixture drawn from a flat Dirichlet distribution: what choosing blindly gives."""
    return _free(np.random.default_rng([seed, 2]).dirichlet(np.ones(len(sizes))))


def unimax(sizes: np.ndarray, settings: UniMaxSettings) -> BaselineResult:
    """UniMax (Chung et al., ICLR 2023, arXiv 2304.09151, algorithm 1): the budget is shared out
    evenly, but no source is read more than N times; what the small ones leave goes to the others.

    Raises `ConfigError` without a budget.
    """
    capacities = settings.max_epochs * np.asarray(sizes, dtype=np.float64)
    given = np.zeros(len(capacities))
    left = float(settings.tokens)
    order = np.argsort(capacities, kind="stable")
    for place, source in enumerate(order):
        given[source] = min(capacities[source], left / (len(order) - place))
        left -= given[source]
    return _free(given / given.sum())


def _free(weights: np.ndarray) -> BaselineResult:
    return BaselineResult(weights=weights, flops=0.0, tokens=0, steps=0)

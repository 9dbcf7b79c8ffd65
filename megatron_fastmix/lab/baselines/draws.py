"""Random mixtures for methods that train a proxy on each, and those that a regression ranks.

As in the authors' program of RegMix (github.com/sail-sg/regmix): mixtures to train on come from
Dir(s·p) with p the token distribution to the power 0.5, s between 0.1 and 5; mixtures to rank come
from Dir(p) with p the token distribution itself. Its limit of 15 reads of a source holds for both
here. There it is for the first alone, and a linear regression, for which the best candidate is a
corner, then ends in a source of next to no tokens. Not taken over: shares below 2e-4 become 0
there, which is less than one sample of proxies of this size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.settings import RegMixSettings

MAX_ROUNDS = 1000
"""Rounds of draws after which too few mixtures within the limit are a wrong limit."""


def first_mixtures(
    seed: int, sizes: np.ndarray, count: int, settings: RegMixSettings
) -> tuple[np.random.Generator, np.ndarray]:
    """The first `count` training mixtures (count, K) of a seed, and the generator after them.

    Every method that begins with random mixtures begins with these, so that proxies are trained
    once for all: of two counts the smaller one's are the first of the larger one's where the number
    of proxies, `settings.runs`, is at least both.
    """
    generator = np.random.default_rng([seed, 1])
    drawn = draw_mixtures(generator, sizes, max(count, settings.runs), settings)
    return generator, drawn[:count]


def draw_mixtures(
    generator: np.random.Generator, sizes: np.ndarray, count: int, settings: RegMixSettings
) -> np.ndarray:
    """`count` mixtures (count, K) to train on, from Dir(s·p) with tempered p; `sizes` are the
    sources' tokens (K,). Raises `ConfigError` where next to no mixture is within the limit."""
    prior = np.asarray(sizes, dtype=np.float64) ** settings.prior_power
    prior /= prior.sum()
    low, high = np.log(settings.min_strength), np.log(settings.max_strength)

    def draw(number: int) -> np.ndarray:
        strengths = np.exp(generator.uniform(low, high, size=number))
        return _dirichlet(generator, strengths[:, None] * prior)

    return _within_reads(draw, sizes, count, settings)


def simulate(
    generator: np.random.Generator, sizes: np.ndarray, settings: RegMixSettings
) -> np.ndarray:
    """`settings.candidates` mixtures (candidates, K) to rank, from Dir(s·p) with p by size. Raises
    `ConfigError` as `draw_mixtures` does."""
    prior = np.asarray(sizes, dtype=np.float64)
    shapes = settings.candidate_strength * prior / prior.sum()

    def draw(number: int) -> np.ndarray:
        return _dirichlet(generator, np.broadcast_to(shapes, (number, len(shapes))))

    return _within_reads(draw, sizes, settings.candidates, settings)


def _dirichlet(generator: np.random.Generator, shapes: np.ndarray) -> np.ndarray:
    # A Dirichlet draw is gamma draws over their sum, and this is one call for all strengths. Small
    # shapes can underflow: the smallest normal number keeps the sum positive.
    draws = np.maximum(generator.gamma(shapes), np.finfo(np.float64).tiny)
    return draws / draws.sum(axis=1, keepdims=True)


def _within_reads(
    draw: Callable[[int], np.ndarray], sizes: np.ndarray, count: int, settings: RegMixSettings
) -> np.ndarray:
    most = settings.max_reads * np.asarray(sizes, dtype=np.float64) / np.sum(sizes)
    kept: list[np.ndarray] = []
    missing = count
    for _ in range(MAX_ROUNDS):
        drawn = draw(count)
        kept.append(drawn[(drawn <= most).all(axis=1)][:missing])
        missing -= len(kept[-1])
        if not missing:
            return np.concatenate(kept)
    raise ConfigError(
        f"regmix.max_reads: found {settings.max_reads:g}; of {MAX_ROUNDS * count} mixtures drawn "
        f"only {count - missing} read no source more often: raise it"
    )

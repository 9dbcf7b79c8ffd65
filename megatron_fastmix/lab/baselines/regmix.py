"""RegMix: data mixture as regression (Liu et al., ICLR 2025, arXiv 2407.01492).

1. Train N small proxies on N mixtures drawn from Dirichlet distributions around the sizes of the
   sources: α ~ Dir(s·p), with p the token distribution to the power 0.5, as in the authors'
   program, and s between 0.1 and 5 (section 3.1).
2. Fit a regression from mixture to target loss: LightGBM, or linear (section 3.2).
3. Simulate many mixtures of the same distribution and average the best predicted ones (sections
   3.3 and 4.1: the 100 best).

The authors' program also leaves out mixtures that would read a source more than 15 times, which is
not done here. Scaled to this size: 64 proxies instead of 512, so that a leaf of LightGBM needs an
eighth of the usual 20 mixtures, and none to spare for early stopping, so that all 1000 rounds are
fitted; 10⁵ simulated mixtures instead of 10⁶.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.objective import target_loss
from megatron_fastmix.lab.baselines.proxy_pool import ProxyPool
from megatron_fastmix.lab.baselines.result import BaselineResult

Predictor = Callable[[np.ndarray], np.ndarray]
"""From mixtures (N, K) to one value each (N,)."""


@dataclass(frozen=True, kw_only=True)
class RegMixSettings:
    """Hyper-parameters."""

    runs: int = 64
    """N, proxies."""
    predictor: Literal["lightgbm", "linear"] = "lightgbm"
    min_strength: float = 0.1
    max_strength: float = 5.0
    """Ends of s, which is drawn log-uniformly."""
    prior_power: float = 0.5
    """Power of the sizes in p; 1 is the token distribution itself."""
    candidates: int = 100_000
    """Simulated mixtures."""
    top: int = 100
    """How many of the best are averaged."""


def regmix(pool: ProxyPool, sizes: np.ndarray, settings: RegMixSettings) -> BaselineResult:
    """The mixture with the lowest predicted target loss; `sizes` are the sources' tokens (K,)."""
    config = pool.config
    generator, mixtures = first_mixtures(config.seed, sizes, settings)
    losses = pool.losses(mixtures)
    candidates = draw_mixtures(generator, sizes, settings.candidates, settings)
    best = rank(config, settings.predictor, mixtures, losses, candidates)[: settings.top]
    return BaselineResult(
        weights=candidates[best].mean(axis=0),
        flops=pool.flops,
        tokens=pool.tokens,
        steps=pool.steps,
        settings=asdict(settings),
    )


def random_search(pool: ProxyPool, sizes: np.ndarray, settings: RegMixSettings) -> BaselineResult:
    """The best of RegMix's N mixtures by the loss of its own proxy: regression left out."""
    _, mixtures = first_mixtures(pool.config.seed, sizes, settings)
    losses = target_loss(pool.config, pool.losses(mixtures))
    return BaselineResult(
        weights=mixtures[int(np.argmin(losses))],
        flops=pool.flops,
        tokens=pool.tokens,
        steps=pool.steps,
        settings={"runs": settings.runs},
    )


def first_mixtures(
    seed: int, sizes: np.ndarray, settings: RegMixSettings
) -> tuple[np.random.Generator, np.ndarray]:
    """The N mixtures (N, K) of a seed, and the generator after them. Every method that begins with
    random mixtures begins with these, so that proxies are trained once for all."""
    generator = np.random.default_rng([seed, 1])
    return generator, draw_mixtures(generator, sizes, settings.runs, settings)


def draw_mixtures(
    generator: np.random.Generator, sizes: np.ndarray, count: int, settings: RegMixSettings
) -> np.ndarray:
    """`count` mixtures (count, K) from Dir(s·p)."""
    prior = np.asarray(sizes, dtype=np.float64) ** settings.prior_power
    prior /= prior.sum()
    low, high = np.log(settings.min_strength), np.log(settings.max_strength)
    strengths = np.exp(generator.uniform(low, high, size=count))
    # A Dirichlet draw is gamma draws over their sum, and this is one call for all strengths. Small
    # shapes can underflow: the smallest normal number keeps the sum positive.
    draws = generator.gamma(strengths[:, None] * prior)
    draws = np.maximum(draws, np.finfo(np.float64).tiny)
    return draws / draws.sum(axis=1, keepdims=True)


def rank(
    config: SearchConfig,
    predictor: str,
    mixtures: np.ndarray,
    losses: np.ndarray,
    candidates: np.ndarray,
) -> np.ndarray:
    """Indices of `candidates` (M, K), the lowest predicted target loss first, after what training
    on `mixtures` (N, K) gave: `losses` (N, V), a regression for each target."""
    predictors = [fit(predictor, mixtures, column) for column in losses.T]
    predicted = np.stack([predict(candidates) for predict in predictors], axis=1)
    return np.argsort(target_loss(config, predicted), kind="stable")


def fit(name: str, mixtures: np.ndarray, losses: np.ndarray) -> Predictor:
    """Regression from mixtures (N, K) to losses (N,). Raises `ConfigError` without LightGBM."""
    if name == "linear":
        # Shares sum to 1, so a constant is among the features.
        solution = np.linalg.lstsq(mixtures, losses, rcond=None)[0]
        return lambda wanted: wanted @ solution
    try:
        import lightgbm
    except ImportError:
        raise ConfigError(
            "the regression needs the package `lightgbm`; install it with "
            "`pip install megatron-fastmix[baselines]`, or choose the linear predictor"
        ) from None
    settings: dict[str, Any] = {
        "objective": "regression",
        "learning_rate": 0.01,
        "min_data_in_leaf": max(1, 20 * len(mixtures) // 512),
        "seed": 0,
        "deterministic": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    model = lightgbm.train(settings, lightgbm.Dataset(mixtures, losses), num_boost_round=1000)
    return lambda wanted: np.asarray(model.predict(wanted))

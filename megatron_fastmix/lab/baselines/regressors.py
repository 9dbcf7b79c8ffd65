"""Regressions from mixture to target loss, and rankings of mixtures by them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.log_linear import fit_law
from megatron_fastmix.lab.baselines.objective import target_loss

Predictor = Callable[[np.ndarray], np.ndarray]
"""From mixtures (N, K) to one value each (N,)."""

FEWEST_IN_LEAF = 5
"""On RegMix's public table, trees on 64 of its mixtures rank best with this many, and on 32 and 37
they are 9 to 24 points better than with one (`check-tables --proxies`)."""
FEWEST_FOR_TREES = 2 * FEWEST_IN_LEAF + 1
"""Mixtures from which on there is a first split: LightGBM splits between bins of three mixtures or
more, and 10 are 3, 3 and 4 of them, never 5 and 5."""


def linear(mixtures: np.ndarray, losses: np.ndarray) -> Predictor:
    """Least squares. Shares sum to 1, so a constant is among the features."""
    solution = np.linalg.lstsq(mixtures, losses, rcond=None)[0]
    return lambda wanted: wanted @ solution


def lightgbm(mixtures: np.ndarray, losses: np.ndarray) -> Predictor:
    """Gradient-boosted trees as in RegMix's program: 1000 rounds at a learning rate of 0.01.

    That fits 512 mixtures; with fewer a leaf needs as many fewer than its usual 20, though not
    fewer than `FEWEST_IN_LEAF`, and none are left for early stopping. Raises `ConfigError` without
    the package.
    """
    require_lightgbm()
    import lightgbm as package

    settings: dict[str, Any] = {
        "objective": "regression",
        "learning_rate": 0.01,
        "min_data_in_leaf": max(FEWEST_IN_LEAF, min(20, 20 * len(mixtures) // 512)),
        "seed": 0,
        "deterministic": True,
        "num_threads": 1,
        "verbosity": -1,
    }
    model = package.train(settings, package.Dataset(mixtures, losses), num_boost_round=1000)
    return lambda wanted: np.asarray(model.predict(wanted))


def require_lightgbm() -> None:
    """Raises `ConfigError` where the package is missing."""
    _require("lightgbm", "regmix_linear")


def require_scipy() -> None:
    """Raises `ConfigError` where the package is missing."""
    _require("scipy", "regmix_linear")


def _require(package: str, instead: str) -> None:
    try:
        import_module(package)
    except ImportError:
        raise ConfigError(
            f"the regression needs the package `{package}`; install it with "
            f"`pip install megatron-fastmix[baselines]`, or choose {instead}"
        ) from None


REGRESSORS: dict[str, Callable[[np.ndarray, np.ndarray], Predictor]] = {
    "lightgbm": lightgbm,
    "linear": linear,
    "log-linear": fit_law,
}
"""By name: from mixtures (N, K) and losses (N,)."""


def rank(
    config: SearchConfig,
    regressor: str,
    mixtures: np.ndarray,
    losses: np.ndarray,
    candidates: np.ndarray,
) -> np.ndarray:
    """Indices of `candidates` (M, K), the lowest predicted target loss first, after what training
    on `mixtures` (N, K) gave: `losses` (N, V), a regression for each target."""
    predictors = [REGRESSORS[regressor](mixtures, column) for column in losses.T]
    predicted = np.stack([predict(candidates) for predict in predictors], axis=1)
    return np.argsort(target_loss(config, predicted), kind="stable")

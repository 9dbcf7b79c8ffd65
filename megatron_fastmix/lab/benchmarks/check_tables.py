"""Our regressions on RegMix's public tables, beside the figures of its paper.

The paper (arXiv 2407.01492, table 2) states Spearman's rank correlation for the validation loss of
Pile-CC, times 100. Its authors fit LightGBM on 512 mixtures; random subsets show what is left of it
with fewer proxies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from megatron_fastmix.config.require import require
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.draws import simulate
from megatron_fastmix.lab.baselines.regressors import FEWEST_FOR_TREES, REGRESSORS, Predictor
from megatron_fastmix.lab.baselines.settings import RegMixSettings
from megatron_fastmix.lab.benchmarks.regmix_tables import RegMixTables
from megatron_fastmix.lab.comparison.statistics import standard_deviation
from megatron_fastmix.lab.measurements import Measurement

PAPER = {
    "lightgbm": {"1m": 98.5, "60m": 98.6, "1B": 97.1},
    "linear": {"1m": 90.1, "60m": 90.2, "1B": 88.0},
}
"""Spearman × 100 by regression and size of the model; for the target below alone."""
PAPER_TARGET = "pile_cc"
PAPER_WEIGHT = 0.87
"""Share of Pile-CC in the authors' mixture (model_training/config_1b/regmix.yaml)."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """What is tried."""

    target: str = PAPER_TARGET
    """Validation set whose loss is predicted."""
    proxies: int = 64
    """Mixtures of a subset."""
    draws: int = 20
    """Subsets; 0: none."""
    seed: int = 0
    """Of the subsets and of the simulated mixtures."""

    def __post_init__(self) -> None:
        enough = f"use {FEWEST_FOR_TREES} or more: trees on fewer tell no mixtures apart"
        require(self.proxies >= FEWEST_FOR_TREES, "--proxies", self.proxies, enough)
        require(self.draws >= 0, "--draws", self.draws, "use 0 or more")


def check(
    tables: RegMixTables,
    settings: CheckSettings,
    search: RegMixSettings,
    report: Callable[[str], None] = lambda line: None,
) -> list[Measurement]:
    """Every measurement. Raises `ConfigError` where a package is missing or `proxies` are more than
    the table's."""
    train = tables.train
    if settings.proxies > len(train.losses):
        raise ConfigError(
            f"--proxies: found {settings.proxies}; the table has {len(train.losses)} mixtures"
        )
    found = []
    for name, fit in REGRESSORS.items():
        report(f"{name}: {len(train.losses)} mixtures, then {settings.draws} subsets")
        predict = fit(train.mixtures, train.losses)
        paper = PAPER.get(name, {}) if settings.target == PAPER_TARGET else {}
        for size, value in correlations(predict, tables).items():
            found.append(
                _ranks(f"{name}, {len(train.losses)} mixtures", size, value, paper.get(size))
            )
        found += _answer(name, predict, tables, settings, search)
        found += _subsets(name, tables, settings)
    return found


def correlations(predict: Predictor, tables: RegMixTables) -> dict[str, float]:
    """Spearman × 100 of predicted and true losses, by size of the model."""
    from scipy.stats import spearmanr

    return {
        size: 100 * float(spearmanr(predict(test.mixtures), test.losses).statistic)
        for size, test in tables.tests.items()
    }


def simulated_best(
    predict: Predictor, tables: RegMixTables, search: RegMixSettings, seed: int
) -> np.ndarray:
    """The mixture (K,) that RegMix would answer: the mean of the best predicted ones."""
    candidates = simulate(np.random.default_rng(seed), tables.token_shares, search)
    best = np.argsort(predict(candidates), kind="stable")[: search.top]
    return np.asarray(candidates[best].mean(axis=0))


def _answer(
    name: str,
    predict: Predictor,
    tables: RegMixTables,
    settings: CheckSettings,
    search: RegMixSettings,
) -> Iterator[Measurement]:
    mixture = simulated_best(predict, tables, search, settings.seed)
    published = settings.target == PAPER_TARGET and name == "lightgbm"
    for place in np.argsort(-mixture)[:3]:
        source = tables.train.sources[place]
        paper = f" (published: {PAPER_WEIGHT})" if published and source == PAPER_TARGET else ""
        yield Measurement(
            figure=f"{name}, mixture found: {source}{paper}", value=mixture[place], unit="share"
        )


def _subsets(name: str, tables: RegMixTables, settings: CheckSettings) -> Iterator[Measurement]:
    train = tables.train
    generator = np.random.default_rng([settings.seed, settings.proxies])
    values: dict[str, list[float]] = {}
    for _ in range(settings.draws):
        chosen = generator.choice(len(train.losses), size=settings.proxies, replace=False)
        predict = REGRESSORS[name](train.mixtures[chosen], train.losses[chosen])
        for size, value in correlations(predict, tables).items():
            values.setdefault(size, []).append(value)
    for size, each in values.items():
        what = f"{name}, {settings.proxies} mixtures"
        yield _ranks(f"{what}, mean of {settings.draws}", size, float(np.mean(each)))
        yield Measurement(
            figure=f"{what}, standard deviation: Spearman at {size}",
            value=standard_deviation(each),
            unit="× 100",
        )


def _ranks(what: str, size: str, value: float, paper: float | None = None) -> Measurement:
    return Measurement(
        figure=f"{what}: Spearman at {size}",
        value=value,
        reach=paper,
        better="higher",
        unit="× 100",
    )

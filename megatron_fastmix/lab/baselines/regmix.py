"""RegMix: data mixture as regression (Liu et al., ICLR 2025, arXiv 2407.01492).

1. Train N small proxies on N mixtures drawn around the tempered sizes of the sources (`draws`).
2. Fit a regression from mixture to target loss: LightGBM, or linear (section 3.2).
3. Simulate many mixtures around the sizes themselves and average the best predicted ones (the
   authors' program: 128 of 10⁵).

Scaled to this size: 64 proxies instead of 512, which on the authors' own table of 17 sources are a
weak RegMix (`megatron-fastmix check-tables`).
"""

from __future__ import annotations

import numpy as np

from megatron_fastmix.lab.baselines.draws import first_mixtures, simulate
from megatron_fastmix.lab.baselines.objective import target_loss
from megatron_fastmix.lab.baselines.proxy_pool import ProxyPool
from megatron_fastmix.lab.baselines.regressors import rank
from megatron_fastmix.lab.baselines.result import BaselineResult
from megatron_fastmix.lab.baselines.settings import RegMixSettings


def regmix(
    pool: ProxyPool, sizes: np.ndarray, settings: RegMixSettings, regressor: str = "lightgbm"
) -> BaselineResult:
    """The mixture with the lowest predicted target loss; `sizes` are the sources' tokens (K,)."""
    config = pool.config
    generator, mixtures = first_mixtures(config.seed, sizes, settings.runs, settings)
    candidates = simulate(generator, sizes, settings)  # refuses a limit before a proxy trains
    losses = pool.losses(mixtures)
    best = rank(config, regressor, mixtures, losses, candidates)[: settings.top]
    return BaselineResult(
        weights=candidates[best].mean(axis=0),
        flops=pool.flops,
        tokens=pool.tokens,
        steps=pool.steps,
    )


def random_search(pool: ProxyPool, sizes: np.ndarray, settings: RegMixSettings) -> BaselineResult:
    """The best of RegMix's N mixtures by the loss of its own proxy: regression left out."""
    _, mixtures = first_mixtures(pool.config.seed, sizes, settings.runs, settings)
    losses = target_loss(pool.config, pool.losses(mixtures))
    return BaselineResult(
        weights=mixtures[int(np.argmin(losses))],
        flops=pool.flops,
        tokens=pool.tokens,
        steps=pool.steps,
    )

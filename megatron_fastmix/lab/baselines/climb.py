"""CLIMB's iterative search (Diao et al., NeurIPS 2025, arXiv 2504.13161), on given sources.

Its first half clusters documents into sources; the sources are given here. The second half
(section 3.2) alternates between training proxies on promising mixtures and fitting a predictor to
all outcomes so far:

1. draw M₁ mixtures at random (those of RegMix here) and train a proxy on each;
2. fit the predictor f (LightGBM); rank fresh simulated mixtures by f; draw the next Mᵢ at random
   from the top N, which weighs exploration against exploitation; train; repeat;
3. answer the mean of the mixtures that the last predictor ranks first, as in RegMix.

The paper trains 64, 32 and 16 proxies in three rounds; here the same 4 : 2 : 1 of 64 in all.
"""

from __future__ import annotations

import numpy as np

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.draws import first_mixtures, simulate
from megatron_fastmix.lab.baselines.proxy_pool import ProxyPool
from megatron_fastmix.lab.baselines.regressors import rank
from megatron_fastmix.lab.baselines.result import BaselineResult
from megatron_fastmix.lab.baselines.settings import ClimbSettings, RegMixSettings


def climb(
    pool: ProxyPool, sizes: np.ndarray, settings: ClimbSettings, draws: RegMixSettings
) -> BaselineResult:
    """The mixture that the last predictor prefers; `sizes` are the sources' tokens (K,)."""
    config = pool.config
    if draws.candidates < settings.most_drawn:
        raise ConfigError(
            f"regmix.candidates: found {draws.candidates}, fewer than a round of climb.runs "
            f"{list(settings.runs)} draws of them; use {settings.most_drawn} or more"
        )
    generator, chosen = first_mixtures(config.seed, sizes, settings.runs[0], draws)
    simulated = simulate(generator, sizes, draws)  # refuses a limit before a proxy trains
    tried, outcomes = chosen, pool.losses(chosen)
    best: list[np.ndarray] = []
    for runs in (*settings.runs[1:], None):
        if best:
            simulated = simulate(generator, sizes, draws)
        order = rank(config, "lightgbm", tried, outcomes, simulated)
        best.append(simulated[order[: draws.top]].mean(axis=0))
        if runs is not None:
            chosen = simulated[generator.choice(order[: settings.top], size=runs, replace=False)]
            tried = np.concatenate([tried, chosen])
            outcomes = np.concatenate([outcomes, pool.losses(chosen)])
    return BaselineResult(
        weights=best[-1],
        flops=pool.flops,
        tokens=pool.tokens,
        steps=pool.steps,
        history=best,
    )

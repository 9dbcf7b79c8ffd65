"""CLIMB's iterative search (Diao et al., NeurIPS 2025, arXiv 2504.13161), on given sources.

Its first half clusters documents into sources; the sources are given here. The second half
(section 3.2) alternates between training proxies on promising mixtures and fitting a predictor to
all outcomes so far:

1. draw M₁ mixtures at random (those of RegMix here) and train a proxy on each;
2. fit the predictor f (LightGBM); rank fresh random mixtures by f; draw the next Mᵢ at random from
   the top N, which weighs exploration against exploitation; train; repeat;
3. answer the mixture that the last predictor ranks first.

The paper trains 64, 32 and 16 proxies in three rounds; here the same 4 : 2 : 1 of 64 in all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from megatron_fastmix.lab.baselines.proxy_pool import ProxyPool
from megatron_fastmix.lab.baselines.regmix import (
    RegMixSettings,
    draw_mixtures,
    first_mixtures,
    rank,
)
from megatron_fastmix.lab.baselines.result import BaselineResult


@dataclass(frozen=True, kw_only=True)
class ClimbSettings:
    """Hyper-parameters."""

    runs: tuple[int, ...] = (37, 18, 9)
    """Proxies of each round."""
    candidates: int = 10_000
    """Fresh mixtures that are ranked in each round."""
    top: int = 100
    """N, the best ranked of which the next round's are drawn."""


def climb(pool: ProxyPool, sizes: np.ndarray, settings: ClimbSettings) -> BaselineResult:
    """The mixture that the last predictor ranks first; `sizes` are the sources' tokens (K,)."""
    config = pool.config
    dirichlet = RegMixSettings()
    generator, at_random = first_mixtures(config.seed, sizes, dirichlet)
    tried = np.empty((0, len(sizes)))
    outcomes = np.empty((0, len(config.targets)))
    best: list[np.ndarray] = []
    for runs in settings.runs:
        if best:
            drawn = draw_mixtures(generator, sizes, settings.candidates, dirichlet)
            # What was tried may be chosen in the end, but is not trained again.
            ranked = drawn[rank(pool.config, "lightgbm", tried, outcomes, drawn)[: settings.top]]
            chosen = ranked[generator.choice(len(ranked), size=runs, replace=False)]
        else:
            chosen = at_random[:runs]
        tried = np.concatenate([tried, chosen])
        outcomes = np.concatenate([outcomes, pool.losses(chosen)])
        fresh = draw_mixtures(generator, sizes, settings.candidates, dirichlet)
        candidates = np.concatenate([fresh, tried])
        best.append(candidates[rank(pool.config, "lightgbm", tried, outcomes, candidates)[0]])
    return BaselineResult(
        weights=best[-1],
        flops=pool.flops,
        tokens=pool.tokens,
        steps=pool.steps,
        history=best,
        settings=asdict(settings),
    )

"""A log-linear mixing law, and the mixture that is best by it (as olmix does).

1. Train N proxies on RegMix's mixtures, and fit a law to the losses of each target (`log_linear`).
2. Answer argmin_α Σ_v ω_v·L_v(α) + λ·KL(α‖p) where no source is read more than R times: p are the
   sizes of the sources, α_k ≤ R·n_k/D for a run of D tokens (`token_budget`; without one no limit
   is known) over sources of n_k. The law is convex in α, so is the problem, and it is solved
   exactly instead of by ranking simulated mixtures.

github.com/allenai/olmix has λ = 0.1 and R = 5 in its examples, and D for the run to come.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.draws import first_mixtures
from megatron_fastmix.lab.baselines.log_linear import LogLinearLaw, fit_law
from megatron_fastmix.lab.baselines.proxy_pool import ProxyPool
from megatron_fastmix.lab.baselines.result import BaselineResult
from megatron_fastmix.lab.baselines.settings import MixingLawSettings, RegMixSettings

SMALLEST = 1e-9
"""Share at which the logarithm of the divergence ends."""


def mixing_law(
    pool: ProxyPool, sizes: np.ndarray, settings: MixingLawSettings, draws: RegMixSettings
) -> BaselineResult:
    """The mixture with the lowest predicted loss; `sizes` are the sources' tokens (K,)."""
    config = pool.config
    _, mixtures = first_mixtures(config.seed, sizes, draws.runs, draws)
    laws = [fit_law(mixtures, losses) for losses in pool.losses(mixtures).T]
    return BaselineResult(
        weights=best_mixture(config, laws, sizes, settings),
        flops=pool.flops,
        tokens=pool.tokens,
        steps=pool.steps,
    )


def _most(config: SearchConfig, sizes: np.ndarray, settings: MixingLawSettings) -> list[float]:
    """The largest α_k, (K,)."""
    if config.token_budget is None:
        return [1.0] * len(sizes)
    most = settings.max_reads * np.asarray(sizes, dtype=np.float64) / config.token_budget
    if most.sum() < 1:
        raise ConfigError(
            f"mixing_law.max_reads: found {settings.max_reads:g}; the sources then give "
            f"{most.sum():.3g} of token_budget {config.token_budget:,}: raise it"
        )
    return np.minimum(1.0, most).tolist()


def best_mixture(
    config: SearchConfig,
    laws: Sequence[LogLinearLaw],
    sizes: np.ndarray,
    settings: MixingLawSettings,
) -> np.ndarray:
    """α (K,) of step 2; the largest L_v − reference_v stands for the sum where the objective is not
    the mean. Raises `ConfigError` where the solver ends without an answer."""
    from scipy.optimize import minimize  # comes with the extra `baselines`

    prior = np.asarray(sizes, dtype=np.float64) / np.sum(sizes)
    count = len(prior)
    shares = np.asarray(config.target_weights)
    offsets = np.array([target.reference_loss for target in config.targets])
    mean = config.objective.is_mean

    # With the largest excess there is one more variable, a bound on it, which is lowered.
    def value(x: np.ndarray) -> float:
        alpha = x[:count]
        loss = (
            sum(w * law(alpha) for w, law in zip(shares, laws, strict=True)) if mean else x[count]
        )
        return float(loss + settings.kl * np.sum(alpha * np.log(alpha / prior)))

    def slope(x: np.ndarray) -> np.ndarray:
        alpha = x[:count]
        found = settings.kl * (np.log(alpha / prior) + 1)
        if not mean:
            return np.append(found, 1.0)
        return found + sum(w * law.gradient(alpha) for w, law in zip(shares, laws, strict=True))

    constraints = [
        {
            "type": "eq",
            "fun": lambda x: x[:count].sum() - 1,
            "jac": lambda x: np.append(np.ones(count), np.zeros(len(x) - count)),
        }
    ]
    bounds: list[tuple[float | None, float | None]] = [
        (SMALLEST, most) for most in _most(config, sizes, settings)
    ]
    start = prior
    if not mean:
        for law, offset in zip(laws, offsets, strict=True):
            constraints.append(
                {
                    "type": "ineq",
                    "fun": lambda x, law=law, offset=offset: x[count] - law(x[:count]) + offset,
                    "jac": lambda x, law=law: np.append(-law.gradient(x[:count]), 1.0),
                }
            )
        bounds.append((None, None))
        worst = max(law(prior) - offset for law, offset in zip(laws, offsets, strict=True))
        start = np.append(prior, worst)
    found = minimize(
        value,
        start,
        jac=slope,
        method="SLSQP",
        bounds=bounds,
        constraints=constraints,
        options={"maxiter": 1000, "ftol": 1e-10},
    )
    if not found.success:
        raise ConfigError(f"mixing_law: the solver ends with: {found.message}; raise mixing_law.kl")
    alpha = np.maximum(found.x[:count], 0.0)
    return alpha / alpha.sum()

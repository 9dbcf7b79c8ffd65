"""Online Data Mixing (Albalak et al., 2023, arXiv 2312.02406): a bandit that is paid in loss.

Each source is an arm, its training loss the reward: where it is high there is most to learn.
A micro-batch is of one source, drawn from π. After step t, for the sources that were drawn,

    R̂_k = ξ·R̂_k + (1 − ξ)·L_k / π_k,      ε_t = min(1/K, √(ln K / (K·t))),
    π_k = (1 − K·ε_t)·exp(ε_{t−1}·R̂_k) / Σ_i exp(ε_{t−1}·R̂_i) + ε_t              (algorithm 1).

The method mixes a final run as it goes. What is answered here as a static mixture is π averaged
over the steps after the warm-up, the proportions in which such a run would have read the sources.
"""

from __future__ import annotations

import numpy as np

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.lab.baselines.proxy_run import ProxyRun
from megatron_fastmix.lab.baselines.result import BaselineResult
from megatron_fastmix.lab.baselines.settings import ODMSettings
from megatron_fastmix.mixture.simplex import softmax


def odm(config: SearchConfig, settings: ODMSettings, cache_path: str) -> BaselineResult:
    """One training. Raises what `ProxyRun` raises."""
    run = ProxyRun(config, cache_path)
    count, size = run.num_sources, config.training.global_batch_size
    generator = np.random.default_rng([config.seed, 0x0D])
    rewards, policy = np.zeros(count), np.full(count, 1 / count)
    history = [policy]
    drawings = min(settings.micro_batches, size)
    while run.step < config.training.train_iters:
        arms = generator.choice(count, size=drawings, p=policy)
        sources = np.resize(np.repeat(arms, -(-size // drawings)), size)
        losses = run.train(run.read(sources))
        rewards = reward(rewards, losses, policy, settings)
        if run.step > settings.warmup * config.training.train_iters:
            policy = choose(rewards, run.step)
        history.append(policy)
    first = max(1, round(settings.warmup * config.training.train_iters))
    return BaselineResult(
        weights=np.mean(history[first:], axis=0),
        flops=run.flops,
        tokens=run.tokens,
        steps=run.step,
        history=history,
    )


def reward(
    rewards: np.ndarray, losses: np.ndarray, policy: np.ndarray, settings: ODMSettings
) -> np.ndarray:
    """R̂ after a step; `losses` (K,) are NaN for the sources that were not drawn."""
    new = settings.smoothing * rewards + (1 - settings.smoothing) * losses / policy
    return np.where(np.isnan(losses), rewards, new)


def choose(rewards: np.ndarray, step: int) -> np.ndarray:
    """π (K,) after step t ≥ 1."""
    count = len(rewards)
    now, before = _exploration(count, step), _exploration(count, max(1, step - 1))
    return (1 - count * now) * softmax(before * rewards) + now


def _exploration(count: int, step: int) -> float:
    return float(min(1 / count, np.sqrt(np.log(count) / (count * step))))

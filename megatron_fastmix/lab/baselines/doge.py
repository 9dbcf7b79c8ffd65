"""DoGE, for a target outside the sources (Fan, Pagliardini and Jaggi, ICML 2024, arXiv 2310.15393).

Each step reads samples of every source and of the target. With l_k and l_target their mean losses,

    W_k = ⟨∇l_k, ∇l_target⟩,    α ∝ α·exp(η_t·W / μ),    θ ← θ − η_t·Σ_k α_k ∇l_k,

that is mirror descent with the entropy as its mirror map (their algorithm 1, with the target's
gradient in place of the sum over sources; of several it is that of Σ ω_v·l_v, whatever the
search's objective makes of them). The answer is α averaged over the run.
θ moves by AdamW as the search's proxy does; η_t is its learning rate.
"""

from __future__ import annotations

import numpy as np
import torch

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.lab.baselines.proxy_run import ProxyRun, WeightedBatch
from megatron_fastmix.lab.baselines.result import BaselineResult
from megatron_fastmix.lab.baselines.settings import DoGESettings
from megatron_fastmix.mixture.simplex import safe_log, softmax


def doge(config: SearchConfig, settings: DoGESettings, cache_path: str) -> BaselineResult:
    """One training with K + 1 backward passes a step. Raises what `ProxyRun` raises."""
    run = ProxyRun(config, cache_path)
    count = run.num_sources
    per_source = max(1, config.training.global_batch_size // count)
    weights = np.full(count, 1 / count)
    history = [weights]
    while run.step < config.training.train_iters:
        target = run.gradient(_target(run, settings))
        gradients = [run.gradient(run.read([source] * per_source)) for source in range(count)]
        alignment = np.array([float(torch.dot(gradient, target)) for gradient in gradients])
        weights = update(weights, alignment, run.lr, settings)
        history.append(weights)
        _set_gradient(run, gradients, weights)
        run.apply_gradients()
    return BaselineResult(
        weights=np.mean(history[1:], axis=0),
        flops=run.flops,
        tokens=run.tokens,
        steps=run.step,
        history=history,
    )


def update(
    weights: np.ndarray, alignment: np.ndarray, lr: float, settings: DoGESettings
) -> np.ndarray:
    """α after a step at learning rate η_t that found W (K,), all shapes (K,)."""
    return softmax(safe_log(weights) + lr * alignment / settings.temperature)


def _target(run: ProxyRun, settings: DoGESettings) -> list[WeightedBatch]:
    """The next samples of every target; their weights sum to ω_v for each."""
    batches = []
    for target, share in enumerate(run.config.target_weights):
        samples = max(1, round(share * settings.target_samples))
        found = run.read_target(target, run.step * samples, samples)
        batches += [(batch, weights * share) for batch, weights in found]
    return batches


def _set_gradient(run: ProxyRun, gradients: list[torch.Tensor], weights: np.ndarray) -> None:
    total = torch.zeros_like(gradients[0])
    for gradient, weight in zip(gradients, weights.tolist(), strict=True):
        total.add_(gradient, alpha=weight)
    for parameter, part in zip(
        run.parameters, total.split([p.numel() for p in run.parameters]), strict=True
    ):
        parameter.grad = part.view_as(parameter).to(parameter.device)

"""DoReMi (Xie et al., NeurIPS 2023, arXiv 2305.10429), algorithm 1.

1. Train a reference proxy on the reference weights.
2. Train a second proxy by group DRO over the sources: with λ_k the mean excess loss of source k
   over the reference, per token max(ℓ_θ − ℓ_ref, 0),

       α'_k = α_k · exp(η·λ_k),    α = (1 − c)·α'/Σα' + c/K,

   and θ descends on Σ_k α_k·L_k of a minibatch drawn evenly from all sources. A source that a
   minibatch lacks keeps its last λ_k: none would count as no excess, and lower its weight.
3. The answer is α averaged over all steps.

There is no target: DoReMi asks for a mixture that is good for every source.
"""

from __future__ import annotations

import numpy as np
import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.lab.baselines.proxy_run import ProxyRun
from megatron_fastmix.lab.baselines.result import BaselineResult
from megatron_fastmix.lab.baselines.settings import DoReMiSettings
from megatron_fastmix.proxy.megatron_gpt import batch_token_losses, mean_by_sample


def doremi(config: SearchConfig, settings: DoReMiSettings, cache_path: str) -> BaselineResult:
    """Both trainings, each as long as a search's proxy. Raises what `ProxyRun` raises."""
    iters = config.training.train_iters
    reference = ProxyRun(config, cache_path)
    count = reference.num_sources
    sizes = np.array([float(size.size.loss_tokens) for size in reference.inputs.sources])
    shares = sizes / sizes.sum() if settings.reference == "proportional" else np.ones(count) / count
    while reference.step < iters:
        reference.train(reference.read(reference.draw(shares)))

    run = ProxyRun(config, cache_path)
    frozen = reference.model.eval().requires_grad_(False)
    weights = np.full(count, 1 / count)
    history = [weights]
    latest = np.full(count, np.nan)
    even = np.full(count, 1 / count)
    while run.step < iters:
        batches = run.read(run.draw(even))
        excess, samples = np.zeros(count), np.zeros(count)
        tokens = []
        for batch, _ in batches:
            token_losses = batch_token_losses(run.model, batch)
            excess_losses = _excess(frozen, batch, token_losses.detach())
            run.count_passes(batch.num_samples, backward=True)
            run.count_passes(batch.num_samples, backward=False)
            np.add.at(excess, batch.index, excess_losses.cpu().numpy())
            np.add.at(samples, batch.index, batch.sample_weights())
            tokens.append((batch, mean_by_sample(batch, token_losses)))
        latest = latest_excess(latest, excess, samples)
        weights = update(weights, latest, settings)
        history.append(weights)
        # Σ_k α_k · (mean loss of source k); a source that the minibatch lacks has no part in it.
        factors = np.divide(weights, samples, where=samples > 0, out=np.zeros(count))
        for batch, losses in tokens:
            scale = torch.as_tensor(factors[batch.index], device=losses.device)
            (losses * scale).sum().float().backward()
        run.apply_gradients()
    return BaselineResult(
        weights=np.mean(history[1:], axis=0),
        flops=reference.flops + run.flops,
        tokens=reference.tokens + run.tokens,
        steps=2 * iters,
        history=history,
    )


def latest_excess(before: np.ndarray, sums: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """λ after a minibatch with `sums` of excess over `samples` of each source, all shapes (K,):
    that of `before` for a source without a sample, NaN where it never had one."""
    return np.divide(sums, samples, where=samples > 0, out=before.copy())


def update(weights: np.ndarray, excess: np.ndarray, settings: DoReMiSettings) -> np.ndarray:
    """α after a step; all shapes (K,). `excess` is λ, NaN for a source that was never seen, which
    counts as the others' mean."""
    excess = np.where(np.isnan(excess), np.nanmean(excess), excess)
    raised = weights * np.exp(settings.step_size * (excess - excess.max()))
    smoothing = settings.smoothing
    return (1 - smoothing) * raised / raised.sum() + smoothing / len(weights)


@torch.no_grad()
def _excess(frozen: torch.nn.Module, batch: Batch, losses: torch.Tensor) -> torch.Tensor:
    """Mean over each sample's tokens of max(ℓ_θ − ℓ_ref, 0), (B,)."""
    return mean_by_sample(batch, (losses - batch_token_losses(frozen, batch)).clamp_min(0))

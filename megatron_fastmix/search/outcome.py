"""From what was found to the result, `mixture.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from megatron_fastmix.checkpoint.store import SearchState
from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.mixture.optimality import Optimality
from megatron_fastmix.result.learned_mixture import (
    LearnedMixture,
    LearnedSource,
    OptimalityResult,
    TargetResult,
)
from megatron_fastmix.search.inputs import Inputs

PACKAGES = ("megatron-fastmix", "megatron-core", "deepspeed", "torch", "numpy")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search or another method found; arrays are (K,), in the order of the sources."""

    estimator: str
    """How the mixture was found."""
    weights: np.ndarray
    spread: np.ndarray
    """Standard deviation of the weights over the averaged outer steps."""
    initial: np.ndarray
    final: np.ndarray
    logits: np.ndarray
    target_weights: Sequence[float]
    initial_losses: Sequence[float | None]
    """Of each target, nats per token; None where it was not measured."""
    final_losses: Sequence[float | None]
    complete: bool
    steps: int
    outer_steps: int
    averaging_fraction: float
    averaged_outer_steps: int
    flops: float
    seconds: float
    tokens: int
    optimality: Optimality | None = None
    """None for methods that know no advantages."""

    def learned_mixture(self, config: SearchConfig, inputs: Inputs) -> LearnedMixture:
        """The outcome with what is known of its sources and targets."""
        # JSON keeps 17 digits, yet the sum of a mean may be off by one in the last place.
        weights = self.weights / self.weights.sum()
        sources = tuple(
            LearnedSource(
                name=source.name,
                shards=size.shards,
                documents=size.documents,
                initial_weight=float(self.initial[k]),
                final_weight=float(self.final[k]),
                weight=float(weights[k]),
                weight_std=float(self.spread[k]),
                logit=float(self.logits[k]),
                advantage=self._advantage(k)[0],
                advantage_standard_error=self._advantage(k)[1],
            )
            for k, (source, size) in enumerate(zip(config.sources, inputs.sources, strict=True))
        )
        targets = tuple(
            TargetResult(
                name=target.name,
                path=size.datasets[0].path,
                tokens=size.tokens,
                size=size.size,
                shards=size.shards if len(size.shards) > 1 else (),
                weight=self.target_weights[v],
                initial_loss=self.initial_losses[v],
                final_loss=self.final_losses[v],
            )
            for v, (target, size) in enumerate(zip(config.targets, inputs.targets, strict=True))
        )
        all_tokens = sum(size.size.loss_tokens for size in inputs.sources)
        return LearnedMixture(
            seq_length=config.data.seq_length,
            complete=self.complete,
            steps=self.steps,
            outer_steps=self.outer_steps,
            averaging_fraction=self.averaging_fraction,
            averaged_outer_steps=self.averaged_outer_steps,
            token_budget=config.token_budget or all_tokens,
            seed=config.seed,
            estimator=self.estimator,
            optimality=None
            if self.optimality is None
            else OptimalityResult(status=self.optimality.status, text=self.optimality.text),
            sources=sources,
            targets=targets,
            cost={
                "training_flops": self.flops,
                "wall_seconds": self.seconds,
                "tokens": float(self.tokens),
            },
            versions={name: version(name) for name in PACKAGES},
            config=strict_yaml.to_dict(config),
        )

    def _advantage(self, k: int) -> tuple[float | None, float | None]:
        """A_k and its standard error, where they are known."""
        if self.optimality is None:
            return None, None
        found = self.optimality.advantage[k], self.optimality.standard_error[k]
        mean, error = (value if math.isfinite(value) else None for value in found)
        return mean, error


def search_outcome(
    config: SearchConfig, mixture: Mixture, state: SearchState, flops: float
) -> Outcome:
    """The result so far; `flops` are those of the search, inner and outer steps together."""
    weights, spread, averaged = mixture.averaged()
    unmeasured: list[float | None] = [None] * len(config.targets)
    return Outcome(
        estimator=config.hypergradient.estimator,
        weights=weights,
        spread=spread,
        initial=mixture.history[0],
        final=mixture.weights,
        logits=mixture.logits,
        target_weights=state.target_weights,
        initial_losses=state.initial_target_losses or unmeasured,
        final_losses=state.final_target_losses or unmeasured,
        complete=state.step == config.training.train_iters,
        steps=state.step,
        outer_steps=mixture.outer_steps,
        averaging_fraction=config.mixture.averaging_fraction,
        averaged_outer_steps=averaged,
        flops=flops,
        seconds=state.seconds,
        tokens=state.tokens,
        optimality=mixture.optimality(),
    )

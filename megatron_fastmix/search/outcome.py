"""From what was found to the result, `mixture.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from megatron_fastmix.checkpoint.store import SearchState
from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.mixture.grouping import Grouping
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.mixture.optimality import Optimality
from megatron_fastmix.result.learned_group import LearnedGroup
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
    """Of what has a logit; None for methods that know no advantages."""
    grouping: Grouping | None = None
    """What has a logit; None for the sources."""
    groups: tuple[LearnedGroup, ...] = ()

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
            groups=self.groups,
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
        """A_k and its standard error, where they are known and the source's own."""
        if self.optimality is None:
            return None, None
        place = k
        if self.grouping is not None:
            place = int(self.grouping.members[k])
            if np.count_nonzero(self.grouping.members == place) > 1:
                return None, None
        return _known(self.optimality.advantage[place], self.optimality.standard_error[place])


def _known(*found: float) -> tuple[float | None, float | None]:
    mean, error = (float(value) if math.isfinite(value) else None for value in found)
    return mean, error


def learned_groups(mixture: Mixture) -> tuple[LearnedGroup, ...]:
    """The groups that the configuration names, as they came out."""
    if mixture.groups is None:
        return ()
    groups, learned = mixture.groups, not mixture.grouping.is_trivial
    spread, *evidence = mixture.averaged_groups()
    known = [_known(*each) for each in zip(*evidence, strict=True)]
    names = np.array(mixture.names, dtype=object)
    return tuple(
        LearnedGroup(
            name=name,
            sources=tuple(names[groups.members == g].tolist()),
            learned=learned,
            weight_std=float(spread[g]),
            advantage=known[g][0],
            advantage_standard_error=known[g][1],
        )
        for g, name in enumerate(groups.names)
    )


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
        grouping=mixture.grouping,
        groups=learned_groups(mixture),
    )

"""What every baseline returns, and its `mixture.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.mixture.grouping import Grouping
from megatron_fastmix.result.learned_group import LearnedGroup
from megatron_fastmix.search.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """A mixture and what finding it cost."""

    weights: np.ndarray
    """Shares, (K,)."""
    flops: float
    """Floating-point operations of every training and evaluation that the method did."""
    tokens: int
    """Tokens trained on."""
    steps: int
    """Optimizer steps, those of all proxies together."""
    history: Sequence[np.ndarray] = ()
    """Weights (K,) over the run, for methods that move them."""

    def over_sources(self, groups: Grouping) -> BaselineResult:
        """Of weights of groups (G,) those of their sources, by the fixed shares inside."""
        return dataclasses.replace(
            self,
            weights=groups.source_weights(np.asarray(self.weights)),
            history=[groups.source_weights(np.asarray(each)) for each in self.history],
        )

    def outcome(
        self, config: SearchConfig, method: str, seconds: float, groups: Grouping | None = None
    ) -> Outcome:
        """The result in the terms of a search; `method` stands for the estimator, `groups` are
        those that the configuration names."""
        weights = np.asarray(self.weights, dtype=np.float64)
        weights = weights / weights.sum()
        history = self.history if len(self.history) else [weights]
        tail = np.stack([*history[len(history) // 2 :], weights])
        unmeasured = [None] * len(config.targets)
        return Outcome(
            estimator=method,
            weights=weights,
            spread=tail.std(axis=0),
            initial=history[0],
            final=history[-1],
            logits=np.log(np.maximum(weights, np.finfo(np.float64).tiny)),
            target_weights=config.target_weights,
            initial_losses=unmeasured,
            final_losses=unmeasured,
            complete=True,
            steps=self.steps,
            outer_steps=max(0, len(self.history) - 1),
            averaging_fraction=1.0,
            averaged_outer_steps=1,
            flops=self.flops,
            seconds=seconds,
            tokens=self.tokens,
            groups=() if groups is None else _groups(config, groups, tail),
        )


def _groups(config: SearchConfig, groups: Grouping, tail: np.ndarray) -> tuple[LearnedGroup, ...]:
    """As of a search; methods know no advantages."""
    spread = groups.sums(tail).std(axis=0)
    names = np.array(config.source_names, dtype=object)
    return tuple(
        LearnedGroup(
            name=name,
            sources=tuple(names[groups.members == g].tolist()),
            learned=config.mixture.learn == "groups",
            weight_std=float(spread[g]),
        )
        for g, name in enumerate(groups.names)
    )

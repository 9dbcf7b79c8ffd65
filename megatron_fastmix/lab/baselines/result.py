"""What every baseline returns, and its `mixture.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_fastmix.config import SearchConfig
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

    def outcome(self, config: SearchConfig, method: str, seconds: float) -> Outcome:
        """The result in the terms of a search; `method` stands for the estimator."""
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
        )

"""`worst_case`: ω moves to the targets with the largest loss above a reference."""

from __future__ import annotations

import numpy as np

from megatron_fastmix.mixture.objective.aggregation import TargetAggregation
from megatron_fastmix.mixture.simplex import safe_log, softmax


class WorstCase(TargetAggregation):
    """ω_v ∝ ω_v·exp(lr·(ℓ_v − reference_v)) after each outer step.

    The exponentiated weights of group DRO (Sagawa et al., 2020, algorithm 1), over targets instead
    of sources.
    """

    def update(self, losses: np.ndarray) -> None:
        excess = losses - self.references
        self.weights = softmax(safe_log(self.weights) + self.config.target_lr * excess)

    def load_state(self, weights: list[float]) -> None:
        self.weights = np.array(weights)

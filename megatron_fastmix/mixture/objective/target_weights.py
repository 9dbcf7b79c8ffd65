"""ω_v: what each target counts for, fixed or moved to the targets that are worst off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_fastmix.config import ObjectiveConfig
from megatron_fastmix.mixture.simplex import safe_log, softmax


class TargetWeights:
    """The weights ω of V targets, float64, summing to 1; pure, so equal on all ranks."""

    def __init__(
        self, initial: Sequence[float], references: Sequence[float], config: ObjectiveConfig
    ) -> None:
        """`initial` is ω at the start, `references` the losses that count as good, both (V,)."""
        self.values = np.asarray(initial, dtype=np.float64)
        self.references = np.asarray(references, dtype=np.float64)
        self.config = config

    def update(self, losses: np.ndarray) -> None:
        """After an outer step that found `losses` (V,): ω_v ∝ ω_v·exp(lr·(ℓ_v − reference_v)).

        The exponentiated weights of group DRO (Sagawa et al., 2020, algorithm 1), over targets
        instead of groups. Does nothing under `mean` and `least_gain`.
        """
        if self.config.target_aggregation == "worst_case":
            excess = losses - self.references
            self.values = softmax(safe_log(self.values) + self.config.target_lr * excess)

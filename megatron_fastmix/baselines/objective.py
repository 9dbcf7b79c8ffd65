"""One number from the losses of several targets, as the search's objective makes it."""

from __future__ import annotations

import numpy as np

from megatron_fastmix.config import SearchConfig


def target_loss(config: SearchConfig, losses: np.ndarray) -> np.ndarray:
    """From losses (..., V) to what is to be lowered (...): Σ ω_v·ℓ_v, or under `worst_case` the
    largest ℓ_v − reference_v."""
    if config.objective.target_aggregation == "worst_case":
        references = [target.reference_loss for target in config.targets]
        return (losses - references).max(axis=-1)
    return losses @ np.asarray(config.target_weights)

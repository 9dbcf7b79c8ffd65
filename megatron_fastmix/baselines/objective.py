"""One number from the losses of several targets, as the search's objective makes it."""

from __future__ import annotations

import numpy as np

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError


def target_loss(config: SearchConfig, losses: np.ndarray) -> np.ndarray:
    """From losses (..., V) to what is to be lowered (...): Σ ω_v·ℓ_v, or under `worst_case` and
    `least_gain` the largest ℓ_v − reference_v."""
    if config.objective.target_aggregation != "mean":
        references = [target.reference_loss for target in config.targets]
        return (losses - references).max(axis=-1)
    return losses @ np.asarray(config.target_weights)


def check_references(config: SearchConfig, method: str) -> None:
    """Raises `ConfigError` where gains are asked for and what they are over is not known."""
    if config.objective.target_aggregation == "least_gain":
        for target in config.targets:
            if not target.reference_loss:
                raise ConfigError(
                    f"target {target.name}: reference_loss is 0; {method} measures gains from it "
                    "under objective.target_aggregation least_gain: give the loss that the proxy "
                    "has under the initial mixture"
                )

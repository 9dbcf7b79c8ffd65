"""One number from the losses of several targets, as the search's objective makes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_fastmix.config import SearchConfig, TargetConfig
from megatron_fastmix.errors import ConfigError


def target_loss(config: SearchConfig, losses: np.ndarray) -> np.ndarray:
    """From losses (..., V) to what is to be lowered (...): Σ ω_v·ℓ_v, or under `worst_case` and
    `least_gain` the largest ℓ_v − reference_v."""
    if not config.objective.is_mean:
        references = [target.reference_loss for target in config.targets]
        return (losses - references).max(axis=-1)
    return losses @ np.asarray(config.target_weights)


def check_references(
    config: SearchConfig, targets: Sequence[TargetConfig], *, where: str, what: str, model: str
) -> None:
    """Raises `ConfigError` where gains are asked for and what they are over is not known.

    `where` is the place of `targets` in the configuration, `what` compares their losses and `model`
    has them.
    """
    if config.objective.needs_products_by_target:
        for target in targets:
            if not target.reference_loss:
                raise ConfigError(
                    f"{where} {target.name}: reference_loss is 0; {what} measures gains from it "
                    "under objective.target_aggregation least_gain: give the loss that "
                    f"{model} has under the initial mixture"
                )

"""Checkpoints of releases that drew samples in another order."""

from __future__ import annotations

from megatron_fastmix.blend.order.spread_order import DRAW_ORDER
from megatron_fastmix.checkpoint.store import SearchState
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError


def check_draws(state: SearchState, config: SearchConfig, *, accept_changes: bool = False) -> None:
    """Raises `ConfigError` for a checkpoint after which samples would be drawn again: until the
    weights change the orders are one, and draws that are even have another."""
    moved = config.mixture.weighting == "sampling" and len(state.mixture["history"]) > 1
    goes_on = state.step < config.training.train_iters
    if moved and goes_on and state.draw_order != DRAW_ORDER and not accept_changes:
        raise ConfigError(
            f"{config.run_dir}: its checkpoint is of a release that drew samples in another order: "
            "some would be read again; use that release, another run_dir, or --accept-changes"
        )

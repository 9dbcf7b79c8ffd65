"""How several targets become one objective: what each counts for, ω_v."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_fastmix.config import ObjectiveConfig


class TargetAggregation:
    """The weights ω of V targets, float64, summing to 1; pure, so equal on all ranks.

    This base class keeps them as they are configured: `mean`.
    """

    def __init__(
        self, initial: Sequence[float], references: Sequence[float], config: ObjectiveConfig
    ) -> None:
        """`initial` is ω at the start, `references` the losses that count as good, both (V,)."""
        self.weights = np.asarray(initial, dtype=np.float64)
        """ω of the outer step to come, (V,)."""
        self.references = np.asarray(references, dtype=np.float64)
        self.config = config

    def choose(
        self, products: np.ndarray, alpha: np.ndarray, initial: np.ndarray, seen: np.ndarray
    ) -> np.ndarray:
        """ω of this outer step, (V,), where each target has products of its own.

        Args:
            products: P_vk = ⟨∇ℓ_v, ∇L_k⟩, shape (V, K), finite.
            alpha: α_t, shape (K,).
            initial: α⁰, shape (K,).
            seen: bool, shape (K,): sources whose products were measured.
        """
        return self.weights

    def update(self, losses: np.ndarray) -> None:
        """After an outer step that found `losses` (V,)."""

    def load_state(self, weights: list[float]) -> None:
        """Takes up ω of a checkpoint, (V,), where it is not the configuration's."""

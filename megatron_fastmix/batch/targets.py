"""A held-out indexed dataset as a target: samples of sequence length, loss on every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_fastmix.blend.order.draw_order import epoch_sample


@dataclass(frozen=True, kw_only=True)
class ValidationTarget:
    """One target ℓ_v; its samples are walked through, epoch after epoch, each in a new order."""

    name: str
    """Name in every artefact."""
    dataset: Any
    """Megatron dataset of the whole held-out set, one epoch long."""
    seed: int
    """Seed of the walk."""

    def sample(self, ordinal: int) -> dict[str, Any]:
        """The `ordinal`-th sample of the walk, a pure function of (seed, ordinal)."""
        stream = f"target/{self.name}"
        return self.dataset[epoch_sample(self.seed, stream, 0, ordinal, len(self.dataset))]

"""What the mixture is to lower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_fastmix.config.require import require, require_at_least


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the mixture is to lower: ℓ = Σ_v ω_v·ℓ_v + β·L_train + λ·Σ α_k log α_k."""

    target_aggregation: Literal["mean", "worst_case", "least_gain"] = "mean"
    """`mean` keeps ω_v as configured. `least_gain` chooses them at every step for the target whose
    loss gains least over the initial mixture, in nats, so that none is sacrificed; it needs a probe
    for each target, and a target that no source helps holds all others back. `worst_case` moves
    them to the targets with the largest loss above `reference_loss` (exponentiated weights; Sagawa
    et al., 2020, algorithm 1)."""
    target_lr: float = 0.1
    """Step of `worst_case`: ω_v grows by exp(target_lr·(ℓ_v − reference_loss_v)) per outer step."""
    train_loss_weight: float = 0.0
    """β: v becomes ∇ℓ_target + β·∇L_train (paper: 0.1 to 0.3 best)."""
    entropy_weight: float = 0.0
    """λ at the peak of training.lr; positive values raise the entropy of the mixture (paper: <
    1e-5). λ·Σ α_k log α_k stands beside η·⟨v, ∇L_k⟩, so that λ is multiplied by η/η_peak: what the
    mixture is drawn to does not then move with the decay of η."""
    prior_weights: tuple[float, ...] | None = None
    """α₀ in the order of `sources`: λ·KL(α‖α₀) replaces λ·Σ α_k log α_k, and pulls α to α₀."""

    def __post_init__(self) -> None:
        require_at_least(self, "objective", 0, ("target_lr", "train_loss_weight", "entropy_weight"))
        require(
            self.prior_weights is None or self.entropy_weight > 0,
            "objective.prior_weights",
            self.prior_weights and list(self.prior_weights),
            "they act through objective.entropy_weight, which is 0: set it (1e-6 is gentle), or "
            "leave them out",
        )

    @property
    def needs_products_by_target(self) -> bool:
        """Whether ω follows from the products of each target apart."""
        return self.target_aggregation == "least_gain"

    @property
    def is_mean(self) -> bool:
        """Whether ω stays as configured, so that ℓ is a mean of the targets' losses."""
        return self.target_aggregation == "mean"

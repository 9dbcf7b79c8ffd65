"""Groups of sources in the learned mixture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LearnedGroup:
    """One group; its weights are the sums of those of its sources, `LearnedMixture.group_weights`.

    What does not follow from the sources is kept: how far the sum moved, and its advantage.
    """

    name: str
    sources: tuple[str, ...]
    """Names of its sources."""
    learned: bool
    """Whether the group had one logit, and the shares inside it were fixed."""
    weight_std: float
    """As a source's: over the averaged part of the run, or over the seeds."""
    advantage: float | None = None
    """A_g = Σ s_k·⟨v, ∇L_k⟩ − Σ α_i⟨v, ∇L_i⟩ with the shares s inside the group, over the groups
    inside their bounds, its mean over the averaged part of the run; None where it is not known. Of
    several seeds as a source's."""
    advantage_standard_error: float | None = None
    """Of that mean."""

"""How ⟨v, ∇L_k⟩ is estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_fastmix.config.require import require

Estimator = Literal["one_pass", "finite_difference", "per_source", "last_layer"]


@dataclass(frozen=True, kw_only=True)
class HypergradientConfig:
    """How ⟨v, ∇L_k⟩ is estimated."""

    estimator: Estimator = "one_pass"
    """A name in `hypergradient.ESTIMATORS`: `one_pass` is exact in any precision; a module that it
    cannot take is named before a rank starts."""
    target_samples: int = 64
    """Samples of each target per outer step over all ranks, from which v is computed."""
    probe_samples_per_source: int = 8
    """Probe samples of each source per outer step over all ranks, on average."""
    probe_samples: int | None = None
    """Probe samples per outer step of all sources together, whatever their number, in place of
    `probe_samples_per_source`: the same expected number for each logit, and for a group (see
    `mixture.learn`) drawn among its sources by their shares. What draws none in a step is not moved
    by it. For hundreds of sources."""
    probe: Literal["separate", "training"] = "separate"
    """What is probed: samples of its own, or the last training batch before the outer step, as it
    is trained on, for the arithmetic of one more forward pass of it. `training` is for `one_pass`
    alone; sources without a sample in that batch are probed apart."""
    probe_allocation: Literal["even", "weighted"] = "even"
    """`weighted` gives every source 2 and the rest by its weight."""
    relative_step: float = 1e-4
    """r in ε = r·‖θ‖/‖v‖ of the finite difference; 1e-4 gave a relative error of 2e-4 in fp32."""
    per_target: bool = False
    """Whether the products of each target are estimated and logged apart: a probe for each target
    instead of one for all. `least_gain` implies it."""
    preconditioner: Literal["none", "adam"] = "none"
    """`adam` divides v by √(second moment) + eps, as the inner AdamW step divides the gradient:
    the derivative of the step that is taken, at another scale (λ must follow it). Moments far
    below the mean of their parameter's count as `deepspeed_engine.preconditioner.FLOOR` of it."""

    def __post_init__(self) -> None:
        for name in ("target_samples", "probe_samples_per_source"):
            require(
                getattr(self, name) >= 1,
                f"hypergradient.{name}",
                getattr(self, name),
                "use at least 1",
            )
        require(
            self.probe_samples is None or self.probe_samples >= 2,
            "hypergradient.probe_samples",
            self.probe_samples,
            "use at least 2: a step compares sources",
        )
        for name, only in (("probe", "separate"), ("probe_allocation", "even")):
            require(
                self.probe_samples is None or getattr(self, name) == only,
                f"hypergradient.{name}",
                getattr(self, name),
                f"probe_samples draws a probe of its own: use {only}, or leave probe_samples out",
            )
        require(
            self.probe_allocation == "even" or self.probe_samples_per_source > 2,
            "hypergradient.probe_samples_per_source",
            self.probe_samples_per_source,
            "probe_allocation weighted gives 2 to each source and shares out the others: use 3 or "
            "more, or probe_allocation even",
        )
        require(
            self.probe == "separate" or self.estimator == "one_pass",
            "hypergradient.probe",
            self.probe,
            f"estimator {self.estimator} needs passes of its own over the probe: use separate, or "
            "estimator one_pass",
        )
        require(
            0 < self.relative_step < 1,
            "hypergradient.relative_step",
            self.relative_step,
            "use a step between 0 and 1",
        )

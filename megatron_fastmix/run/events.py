"""What happens during a search, as events that every sink receives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened after `step` optimizer steps."""

    kind: ClassVar[str]
    """Its name in the metrics; empty for what is shown and not kept."""
    step: int


@dataclass(frozen=True, kw_only=True)
class RunStart(Event):
    """A search begins at step 0."""

    kind = "run"
    sources: list[str]
    targets: list[str]
    initial_weights: Mapping[str, float]
    config: Mapping[str, Any]
    parameters: int | None = None
    """Of the proxy."""
    warnings: Sequence[str] = ()
    """What makes the result less sure from the start."""


@dataclass(frozen=True, kw_only=True)
class Opening(Event):
    """This process takes the search up, at whichever step."""

    kind = ""
    weights: Mapping[str, float]
    """α."""


@dataclass(frozen=True, kw_only=True)
class InnerStep(Event):
    """One optimizer step of the proxy."""

    kind = "inner"
    loss: float
    """Mean over the batch, nats per token."""
    source_loss: Mapping[str, float]
    """Unweighted, nats per token; NaN where the batch had no sample."""
    lr: float
    grad_norm: float | None
    """Before clipping; None where DeepSpeed has none, NaN where it is NaN or Inf."""
    tokens: int
    """Tokens trained on so far."""
    tokens_per_second: float
    seconds: float
    """Wall time."""
    data_seconds: float | None = None
    """Of the step that went into waiting for batches."""
    nonfinite_gradients: int = 0
    """Steps of the search so far whose gradient norm was NaN or Inf."""
    group_loss: Mapping[str, float] | None = None
    """As `source_loss`, of the samples of each group; None without groups."""


@dataclass(frozen=True, kw_only=True)
class OuterStep(Event):
    """One step of the mixture; mappings are by source, or by target."""

    kind = "outer"
    outer_step: int
    weights: Mapping[str, float]
    """α after the step."""
    logits: Mapping[str, float]
    products: Mapping[str, float]
    """⟨v, ∇L_k⟩; NaN where the probe had no sample of the source."""
    products_standard_error: Mapping[str, float]
    noise_to_signal: float | None
    hypergradient: Mapping[str, float]
    """∂ℓ/∂z before the step."""
    advantage: Mapping[str, float]
    """A_k, by how much a source gains over the mixture before the step; NaN without evidence."""
    advantage_standard_error: Mapping[str, float]
    probe_samples: Mapping[str, float]
    lr: float
    target_products: Mapping[str, Mapping[str, float]] | None
    """By target and source, where estimated apart."""
    target_loss: Mapping[str, float]
    """Nats per token, before the step."""
    target_weight: Mapping[str, float]
    """ω."""
    seconds: float
    group_weights: Mapping[str, float] | None = None
    """Sums of the weights of each group's sources after the step; None without groups."""
    group_advantage: Mapping[str, float] | None = None
    """A_g before the step, NaN without evidence."""
    group_advantage_standard_error: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointBegun(Event):
    """A checkpoint's arrays are copied; it is written behind the training."""

    kind = "checkpoint"
    path: str
    """Name of its folder."""
    seconds: float
    """For which the training stood still."""


@dataclass(frozen=True, kw_only=True)
class RunEnd(Event):
    """The search, or this part of it, ends."""

    kind = "end"
    complete: bool
    training_flops: float | None
    """Of all its parts."""


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A line for whoever watches."""

    kind = ""
    text: str


class Sink(Protocol):
    """Receives every event of a search, on rank 0."""

    def receive(self, event: Event) -> None:
        """Takes one event; others than it knows are passed over."""

    def close(self) -> None:
        """Writes what is left."""

"""The mixture α = softmax(z): its logits, their optimizer and their history.

Pure NumPy in float64 and free of collectives: every rank that feeds the same hypergradients into
the same mixture holds bitwise the same logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_fastmix.config import MixtureConfig
from megatron_fastmix.errors import CheckpointError, NonFiniteError
from megatron_fastmix.mixture.optimality import Optimality, judge_optimality
from megatron_fastmix.mixture.outer_optimizer import OUTER_OPTIMIZERS, logit_gradient
from megatron_fastmix.mixture.schedule import scheduled_rate
from megatron_fastmix.mixture.simplex import project_onto_bounds, safe_log, softmax


def averaged_steps(outer_steps: int, fraction: float) -> int:
    """How many of the last iterates the reported mixture averages; at least one."""
    return max(1, round(fraction * outer_steps))


class Mixture:
    """K named sources, their logits z (K,) and the outer optimizer that moves them."""

    def __init__(
        self,
        names: Sequence[str],
        config: MixtureConfig,
        *,
        bounds: tuple[Sequence[float], Sequence[float]] | None = None,
        total_steps: int = 1,
    ) -> None:
        """`bounds` are the least and the largest weight of each source; `total_steps` outer steps
        are the length of the learning rate's decay."""
        self.names = list(names)
        self.config = config
        self.total_steps = total_steps
        lower, upper = bounds or ([0.0] * len(self.names), [1.0] * len(self.names))
        self._lower, self._upper = np.asarray(lower, float), np.asarray(upper, float)
        start = config.initial_weights or [1.0] * len(self.names)
        self.logits = np.log(np.asarray(start, dtype=np.float64))
        self.logits -= self.logits.mean()
        self._keep_bounds()
        self._optimizer = OUTER_OPTIMIZERS[config.optimizer](len(self.names), config)
        self.history = [self.weights]
        self.advantages: list[np.ndarray] = []
        """A_k of each outer step, (K,), NaN where it is not known."""

    @property
    def weights(self) -> np.ndarray:
        """α, float64 of shape (K,), summing to 1."""
        return softmax(self.logits)

    @property
    def loss_weights(self) -> np.ndarray:
        """The factor of each source's samples in the loss, (K,): K·α where sources are drawn
        evenly, 1 where they are drawn by α."""
        if self.config.weighting == "sampling":
            return np.ones(len(self.names))
        return len(self.names) * self.weights

    @property
    def outer_steps(self) -> int:
        """Outer steps taken."""
        return len(self.history) - 1

    @property
    def lr(self) -> float:
        """Learning rate of the outer step to come."""
        config = self.config
        return scheduled_rate(
            self.outer_steps,
            peak=config.lr,
            final=config.min_lr,
            warmup=config.lr_warmup_steps,
            total=self.total_steps,
            style=config.lr_decay_style,
        )

    def update(
        self,
        gradient: np.ndarray,
        seen: np.ndarray | None = None,
        advantage: np.ndarray | None = None,
    ) -> np.ndarray:
        """One outer step; returns ∂ℓ/∂z before it, shape (K,).

        Args:
            gradient: h = ∂ℓ/∂α, shape (K,).
            seen: bool, shape (K,): sources with evidence. The others keep their logit and do not
                shift the mean that centres the rest.
            advantage: A_k (`optimality.advantages`), shape (K,), kept for the verdict on the run.

        Raises `NonFiniteError` where a logit would become NaN or Inf; the logits stay then.
        """
        weights = self.weights
        seen = np.ones(len(weights), dtype=bool) if seen is None else seen
        slope = np.zeros_like(weights)
        if seen.any():
            slope = logit_gradient(gradient, weights, seen)
            self._move(self._optimizer.step(gradient, weights, seen, self.lr))
            self._keep_bounds()
        self.history.append(self.weights)
        unknown = np.full(len(weights), np.nan)
        self.advantages.append(unknown if advantage is None else advantage)
        return slope

    def averaged(self) -> tuple[np.ndarray, np.ndarray, int]:
        """The reported mixture: mean and standard deviation of α over the tail of the run.

        Returns (mean (K,), standard deviation (K,), iterates averaged).
        """
        count = averaged_steps(self.outer_steps, self.config.averaging_fraction)
        tail = np.stack(self.history[-count:])
        return tail.mean(axis=0), tail.std(axis=0), count

    def optimality(self) -> Optimality:
        """Whether the averaged part of the run is at an optimum."""
        count = averaged_steps(self.outer_steps, self.config.averaging_fraction)
        shape = (-1, len(self.names))
        return judge_optimality(
            self.names,
            np.reshape(self.advantages[-count:], shape),
            np.reshape(self.history[:-1][-count:], shape),
            outer_steps=self.outer_steps,
            lower=self._lower.tolist(),
            upper=self._upper.tolist(),
        )

    def state(self) -> dict[str, Any]:
        """Everything that exact resume needs, as JSON values (float64 round-trips by repr)."""
        return {
            "names": self.names,
            "logits": self.logits.tolist(),
            "optimizer": self._optimizer.state(),
            "history": [weights.tolist() for weights in self.history],
            "advantages": [
                [value if np.isfinite(value) else None for value in each.tolist()]
                for each in self.advantages
            ],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores `state()`. Raises `CheckpointError` where the sources differ."""
        if state["names"] != self.names:
            raise CheckpointError(
                f"the checkpoint's sources are {state['names']}, the configuration's {self.names}; "
                "use the same sources in the same order, or another run_dir"
            )
        logits = np.array(state["logits"], dtype=np.float64)
        if not np.isfinite(logits).all():
            raise CheckpointError(
                f"the checkpoint's logits are {logits.tolist()}; remove it, so that the one before "
                "is taken"
            )
        self.logits = logits
        self._optimizer.load_state(state["optimizer"])
        self.history = [np.array(weights) for weights in state["history"]]
        # Checkpoints of before they were kept have none.
        kept = state.get("advantages", [[None] * len(self.names)] * self.outer_steps)
        self.advantages = [np.array(each, dtype=np.float64) for each in kept]

    def _move(self, change: np.ndarray) -> None:
        logits = self.logits + change
        for name, value in zip(self.names, logits, strict=True):
            if not np.isfinite(value):
                raise NonFiniteError(
                    f"outer step {self.outer_steps}: the logit of source {name} would become "
                    f"{value}; lower mixture.lr, and resume from the last checkpoint"
                )
        self.logits = logits

    def _keep_bounds(self) -> None:
        """Moves z so that α lies within its bounds; leaves it bit for bit where it does."""
        weights = self.weights
        projected = project_onto_bounds(weights, self._lower, self._upper)
        if projected is not weights:
            self.logits += safe_log(projected) - safe_log(weights)

"""The mixture α = softmax(z): its logits, their optimizer and their history.

Pure NumPy in float64 and free of collectives: every rank that feeds the same hypergradients into
the same mixture holds bitwise the same logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_fastmix.config import MixtureConfig
from megatron_fastmix.errors import CheckpointError


def softmax(logits: np.ndarray) -> np.ndarray:
    """α from z, both of shape (K,)."""
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def logit_gradient(
    products: np.ndarray,
    weights: np.ndarray,
    inner_lr: float,
    entropy_weight: float = 0.0,
    seen: np.ndarray | None = None,
) -> np.ndarray:
    """∂/∂z of the one-step hypergradient (FastMix, horizon n2 = 1), shape (K,).

    h_k = −η·⟨v, ∇L_k⟩ + λ·(log α_k + 1), then ∂/∂z_j = α_j·(h_j − Σ_i α_i·h_i).

    Args:
        products: ⟨v, ∇L_k⟩ per source, shape (K,); entries of unseen sources are ignored.
        weights: α, shape (K,).
        inner_lr: η, the inner step's learning rate.
        entropy_weight: λ; positive values raise the entropy.
        seen: bool, shape (K,): sources with evidence. The others get gradient 0, and the mean
            that centres the rest is taken over the seen sources alone; counting them as 0 would
            push them down or up for no reason.
    """
    seen = np.ones(len(weights), dtype=bool) if seen is None else seen
    gradient = np.zeros_like(weights)
    alpha = weights[seen]
    h = -inner_lr * products[seen] + entropy_weight * (np.log(alpha) + 1)
    gradient[seen] = alpha * (h - (alpha @ h) / alpha.sum())
    return gradient


def averaged_steps(outer_steps: int, fraction: float) -> int:
    """How many of the last iterates the reported mixture averages; at least one."""
    return max(1, round(fraction * outer_steps))


class Mixture:
    """K named sources, their logits z (K,) and the outer optimizer (Adam) that moves them."""

    def __init__(self, names: Sequence[str], config: MixtureConfig) -> None:
        self.names = list(names)
        self.config = config
        start = config.initial_weights or [1.0] * len(self.names)
        self.logits = np.log(np.asarray(start, dtype=np.float64))
        self.logits -= self.logits.mean()
        self._first_moment = np.zeros_like(self.logits)
        self._second_moment = np.zeros_like(self.logits)
        # Per source, since one without evidence takes no step and must not lose its correction.
        self._updates = np.zeros(len(self.names), dtype=np.int64)
        self.history = [self.weights]

    @property
    def weights(self) -> np.ndarray:
        """α, float64 of shape (K,), summing to 1."""
        return softmax(self.logits)

    @property
    def loss_weights(self) -> np.ndarray:
        """K·α, the factor of each source's samples under uniform sampling, shape (K,)."""
        return len(self.names) * self.weights

    @property
    def outer_steps(self) -> int:
        """Outer steps taken."""
        return len(self.history) - 1

    def update(self, gradient: np.ndarray, seen: np.ndarray | None = None) -> None:
        """One Adam step on z with `gradient` (K,); sources that are not `seen` keep their logit."""
        config, seen = self.config, np.ones_like(gradient, bool) if seen is None else seen
        self._updates += seen
        for moment, beta, value in (
            (self._first_moment, config.adam_beta1, gradient),
            (self._second_moment, config.adam_beta2, gradient**2),
        ):
            moment[seen] = (beta * moment + (1 - beta) * value)[seen]
        updates = np.maximum(self._updates, 1)
        first = self._first_moment / (1 - config.adam_beta1**updates)
        second = self._second_moment / (1 - config.adam_beta2**updates)
        step = config.lr * first / (np.sqrt(second) + config.adam_eps)
        self.logits -= np.where(seen, step, 0.0)
        self.history.append(self.weights)

    def averaged(self) -> tuple[np.ndarray, np.ndarray, int]:
        """The reported mixture: mean and standard deviation of α over the tail of the run.

        Returns (mean (K,), standard deviation (K,), iterates averaged).
        """
        count = averaged_steps(self.outer_steps, self.config.averaging_fraction)
        tail = np.stack(self.history[-count:])
        return tail.mean(axis=0), tail.std(axis=0), count

    def state(self) -> dict[str, Any]:
        """Everything that exact resume needs, as JSON values (float64 round-trips by repr)."""
        return {
            "names": self.names,
            "logits": self.logits.tolist(),
            "first_moment": self._first_moment.tolist(),
            "second_moment": self._second_moment.tolist(),
            "updates": self._updates.tolist(),
            "history": [weights.tolist() for weights in self.history],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores `state()`. Raises `CheckpointError` where the sources differ."""
        if state["names"] != self.names:
            raise CheckpointError(
                f"the checkpoint's sources are {state['names']}, the configuration's {self.names}; "
                "use the same sources in the same order, or another run_dir"
            )
        self.logits = np.array(state["logits"])
        self._first_moment = np.array(state["first_moment"])
        self._second_moment = np.array(state["second_moment"])
        self._updates = np.array(state["updates"])
        self.history = [np.array(weights) for weights in state["history"]]

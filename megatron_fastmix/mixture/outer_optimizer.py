"""The optimizers that move the mixture logits z: NumPy in float64, one class each, one registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from megatron_fastmix.config import MixtureConfig
from megatron_fastmix.mixture.simplex import dot


class OuterOptimizer(Protocol):
    """Turns the hypergradient ∂ℓ/∂α into a change of z."""

    def step(
        self, gradient: np.ndarray, weights: np.ndarray, seen: np.ndarray, lr: float
    ) -> np.ndarray:
        """The change of z, shape (K,); 0 where not seen.

        Args:
            gradient: h = ∂ℓ/∂α, shape (K,); entries of unseen sources are ignored.
            weights: α, shape (K,).
            seen: bool, shape (K,): sources with evidence.
            lr: outer learning rate of this step.
        """

    def state(self) -> dict[str, Any]:
        """What exact resume needs, as JSON values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores `state()`."""


def centred(gradient: np.ndarray, weights: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """h_k − Σ_i α_i·h_i, shape (K,), over the seen sources alone; 0 for the others.

    Counting the unseen as 0 would push them down or up for no reason.
    """
    alpha, h = weights[seen], gradient[seen]
    if not alpha.any():  # all have underflowed
        alpha = np.ones_like(alpha)
    result = np.zeros_like(gradient)
    result[seen] = h - dot(alpha, h) / alpha.sum()
    return result


def logit_gradient(gradient: np.ndarray, weights: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """∂ℓ/∂z_j = α_j·(h_j − Σ_i α_i·h_i) from h = ∂ℓ/∂α, shape (K,): the chain through softmax."""
    return np.where(seen, weights, 0.0) * centred(gradient, weights, seen)


class Adam:
    """Adam on z (Kingma and Ba, 2015), the method's choice; each source counts its own steps."""

    def __init__(self, sources: int, config: MixtureConfig) -> None:
        self.config = config
        self.first_moment = np.zeros(sources)
        self.second_moment = np.zeros(sources)
        # Per source, since one without evidence takes no step and must not lose its correction.
        self.updates = np.zeros(sources, dtype=np.int64)

    def step(
        self, gradient: np.ndarray, weights: np.ndarray, seen: np.ndarray, lr: float
    ) -> np.ndarray:
        config = self.config
        gradient = self._direction(gradient, weights, seen)
        self.updates += seen
        for moment, beta, value in (
            (self.first_moment, config.adam_beta1, gradient),
            (self.second_moment, config.adam_beta2, gradient**2),
        ):
            moment[seen] = (beta * moment + (1 - beta) * value)[seen]
        updates = np.maximum(self.updates, 1)
        first = self.first_moment / (1 - config.adam_beta1**updates)
        second = self.second_moment / (1 - config.adam_beta2**updates)
        return np.where(seen, -lr * first / (np.sqrt(second) + config.adam_eps), 0.0)

    def _direction(self, gradient: np.ndarray, weights: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """What the moments are of, shape (K,)."""
        return logit_gradient(gradient, weights, seen)

    def state(self) -> dict[str, Any]:
        return {
            "first_moment": self.first_moment.tolist(),
            "second_moment": self.second_moment.tolist(),
            "updates": self.updates.tolist(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.first_moment = np.array(state["first_moment"])
        self.second_moment = np.array(state["second_moment"])
        self.updates = np.array(state["updates"])


class MirrorAdam(Adam):
    """Adam on the centred h, without the factor α_k of a gradient on z.

    Adam divides by the root of a slow mean of squares. With the factor, a source that fell has
    gradients far smaller than that mean, which remembers its large weight, and does not come back.
    """

    def _direction(self, gradient: np.ndarray, weights: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return centred(gradient, weights, seen)


class Stateless:
    """The part that optimizers without memory share."""

    def __init__(self, sources: int, config: MixtureConfig) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


class SGD(Stateless):
    """Gradient descent on z."""

    def step(
        self, gradient: np.ndarray, weights: np.ndarray, seen: np.ndarray, lr: float
    ) -> np.ndarray:
        return -lr * logit_gradient(gradient, weights, seen)


class MirrorDescent(Stateless):
    """Exponentiated gradient on α (Kivinen and Warmuth, 1997): α_k ∝ α_k·exp(−lr·h_k).

    Unlike gradients on z, its steps do not shrink with α_k: a source that fell near 0 comes back as
    fast as it went.
    """

    def step(
        self, gradient: np.ndarray, weights: np.ndarray, seen: np.ndarray, lr: float
    ) -> np.ndarray:
        return -lr * centred(gradient, weights, seen)


class ScaledMirrorDescent:
    """Exponentiated gradient whose step is free of the gradient's scale: h is divided by the
    running root mean square, over steps and sources, of what moves z.

    Adam divides each source's gradient by its own scale, which raises the noise of a source without
    evidence to the size of a signal; a scale that all share keeps their proportions.
    """

    def __init__(self, sources: int, config: MixtureConfig) -> None:
        self.config = config
        self.second_moment = 0.0
        self.updates = 0

    def step(
        self, gradient: np.ndarray, weights: np.ndarray, seen: np.ndarray, lr: float
    ) -> np.ndarray:
        beta = self.config.adam_beta2
        direction = centred(gradient, weights, seen)
        self.updates += 1
        square = float(np.mean(direction[seen] ** 2))
        self.second_moment = beta * self.second_moment + (1 - beta) * square
        scale = np.sqrt(self.second_moment / (1 - beta**self.updates))
        return -lr * direction / (scale + self.config.adam_eps)

    def state(self) -> dict[str, Any]:
        return {"second_moment": self.second_moment, "updates": self.updates}

    def load_state(self, state: dict[str, Any]) -> None:
        self.second_moment, self.updates = state["second_moment"], state["updates"]


# `MixtureConfig.optimizer` names the same.
OUTER_OPTIMIZERS: dict[str, Callable[[int, MixtureConfig], OuterOptimizer]] = {
    "adam": Adam,
    "mirror_adam": MirrorAdam,
    "sgd": SGD,
    "mirror_descent": MirrorDescent,
    "scaled_mirror_descent": ScaledMirrorDescent,
}

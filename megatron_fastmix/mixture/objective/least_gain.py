"""`least_gain`: what each target counts for so that none is sacrificed."""

from __future__ import annotations

import numpy as np

from megatron_fastmix.mixture.objective.aggregation import TargetAggregation
from megatron_fastmix.mixture.simplex import dot, safe_log, softmax

_STEP = 0.5
"""τ, how far ahead α is looked at: by about this much in log α, whatever the outer optimizer."""
_ROUNDS = 1000
_TOLERANCE = 1e-9


class LeastGain(TargetAggregation):
    """Chooses ω anew at every outer step, so that it has no state."""

    def choose(
        self, products: np.ndarray, alpha: np.ndarray, initial: np.ndarray, seen: np.ndarray
    ) -> np.ndarray:
        if not seen.all():
            # Among the seen alone: what was not measured is not 0.
            products, alpha, initial = products[:, seen], alpha[seen], initial[seen]
            if not (alpha.any() and initial.any()):
                return self.weights
            alpha, initial = alpha / alpha.sum(), initial / initial.sum()
        return least_gain_weights(products, alpha, initial)


def least_gain_weights(
    products: np.ndarray, weights: np.ndarray, initial: np.ndarray
) -> np.ndarray:
    """ω that steers the mixture for the target that gains least, shape (V,).

    The gain of target v over the initial mixture is how much more a training step at the present θ
    would lower its loss under α than under α⁰, in units of η: g_v(α) = Σ_k (α_k − α⁰_k)·P_vk. ω is
    the answer of the targets in max over α of min over ω of Σ_v ω_v·g_v(α) − KL(α‖α_t)/τ, in which
    α has the closed form α ∝ α_t·exp(τ·Σ_v ω_v·P_vk). It depends on this step's products alone, so
    it neither lags behind the mixture nor needs resuming. β, λ and bounds on α play no part in it.

    Args:
        products: P_vk = ⟨∇ℓ_v, ∇L_k⟩, shape (V, K), finite.
        weights: α_t, shape (K,).
        initial: α⁰, shape (K,).
    """
    # A constant added to a target's products changes no gain, and must not change τ.
    slopes = products - dot(products, weights)[:, None]
    scale = np.sqrt(np.mean(slopes**2))
    omega = np.full(len(products), 1 / len(products))
    if scale == 0:
        return omega
    slopes = slopes / scale
    log_weights = safe_log(weights)

    def allowed(omega: np.ndarray) -> tuple[float, np.ndarray]:
        """max over α of the above, convex in ω, and its gradient: the gains at the best α."""
        ahead = dot(omega, slopes.T)
        logits = log_weights + _STEP * ahead
        highest = logits.max()
        total = highest + np.log(np.exp(logits - highest).sum())
        return total / _STEP - dot(ahead, initial), dot(slopes, softmax(logits) - initial)

    # Exponentiated gradient (Kivinen and Warmuth, 1997) with a rate that follows the curvature.
    rate = 1.0
    value, gains = allowed(omega)
    for _ in range(_ROUNDS):
        if dot(omega, gains) - gains.min() < _TOLERANCE:
            break
        trial = softmax(safe_log(omega) - rate * gains)
        trial_value, trial_gains = allowed(trial)
        if trial_value <= value:
            omega, value, gains = trial, trial_value, trial_gains
            rate *= 1.5
        else:
            rate *= 0.5
    return omega

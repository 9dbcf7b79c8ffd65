"""ω under `least_gain`: what each target counts for so that none is sacrificed."""

from __future__ import annotations

import numpy as np

from megatron_fastmix.simplex import safe_log, softmax

_STEP = 0.5
"""How far ahead α is looked at: a change of log α of this root mean square."""
_ROUNDS = 2000


def least_gain_weights(
    products: np.ndarray, weights: np.ndarray, initial: np.ndarray
) -> np.ndarray:
    """ω that steers the mixture for the target that gains least, shape (V,).

    The gain of target v over the initial mixture is, in units of η, g_v(α) = Σ_k (α_k − α⁰_k)·P_vk.
    ω is the answer of the targets in max over α of min over ω of Σ_v ω_v·g_v(α) − KL(α‖α_t)/τ, in
    which α has the closed form α ∝ α_t·exp(τ·Σ_v ω_v·P_vk): where g_v is low, ω_v is high. It
    depends on this step's products alone, so it neither lags behind the mixture nor needs resuming.

    Args:
        products: P_vk = ⟨∇ℓ_v, ∇L_k⟩, shape (V, K).
        weights: α_t, shape (K,).
        initial: α⁰, shape (K,).
    """
    # A constant added to a target's products changes no gain, and must not change τ.
    slopes = products - (products @ weights)[:, None]
    scale = np.sqrt(np.mean(slopes**2))
    omega = np.full(len(products), 1 / len(products))
    if scale == 0:
        return omega
    slopes = slopes / scale
    for _ in range(_ROUNDS):
        ahead = softmax(safe_log(weights) + _STEP * (omega @ slopes))
        # Exponentiated gradient (Kivinen and Warmuth, 1997) on a convex function of ω.
        omega = softmax(safe_log(omega) - 0.3 * (slopes @ (ahead - initial)))
    return omega

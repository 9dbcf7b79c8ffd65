"""The log-linear mixing law: L(α) = c + exp(Σ_k t_k·α_k), a regression for few proxies.

Ye et al., "Data Mixing Laws" (ICLR 2025, arXiv 2403.16952), have one such term for each group of
texts; olmix (github.com/allenai/olmix) fits one term by Huber's loss, as here. Shares sum to 1, so
that the law's factor is among the t_k. A source of greater use has a lower t_k, and each is worth
less the more there is of it, which a line does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HUBER = 0.01
"""Residuals, in nats, from which on they count linearly: outliers are proxies of a bad seed."""
FLOORS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.97)
"""Where the fit begins: c as a share of the lowest loss. The problem is not convex; the best fit of
all is kept."""


@dataclass(frozen=True, kw_only=True)
class LogLinearLaw:
    """A fitted law of one target."""

    floor: float
    """c, nats per token."""
    slopes: np.ndarray
    """t, (K,)."""

    def __call__(self, mixtures: np.ndarray) -> np.ndarray:
        """L (N,) of mixtures (N, K)."""
        return self.floor + np.exp(np.asarray(mixtures) @ self.slopes)

    def gradient(self, mixture: np.ndarray) -> np.ndarray:
        """∂L/∂α (K,) at a mixture (K,)."""
        return np.exp(mixture @ self.slopes) * self.slopes


def fit_law(mixtures: np.ndarray, losses: np.ndarray) -> LogLinearLaw:
    """The law that mixtures (N, K) and their losses (N,) follow best."""
    from scipy.optimize import least_squares  # comes with the extra `baselines`

    mixtures, losses = np.asarray(mixtures, dtype=np.float64), np.asarray(losses, dtype=np.float64)

    def residuals(values: np.ndarray) -> np.ndarray:
        return values[0] + np.exp(mixtures @ values[1:]) - losses

    def jacobian(values: np.ndarray) -> np.ndarray:
        powers = np.exp(mixtures @ values[1:])
        return np.column_stack([np.ones(len(mixtures)), powers[:, None] * mixtures])

    best = None
    for share in FLOORS:
        floor = share * losses.min()
        # With c known the law is a line in log(L - c). A little ridge for sources that few have.
        shrunk = mixtures.T @ mixtures + 1e-3 * np.eye(mixtures.shape[1])
        slopes = np.linalg.solve(shrunk, mixtures.T @ np.log(losses - floor))
        found = least_squares(
            residuals, np.concatenate([[floor], slopes]), jacobian, loss="huber", f_scale=HUBER
        )
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    return LogLinearLaw(floor=float(best.x[0]), slopes=best.x[1:])

"""95 % points of Student's t and of F for any degrees of freedom; the package needs no scipy.

P(F > f) is the regularised incomplete beta function at ν₂ / (ν₂ + ν₁·f), here by its continued
fraction (Abramowitz and Stegun, 26.5.8 and 26.6.2, evaluated as Lentz does); relative error of the
points below 1e-6.
"""

from __future__ import annotations

import math

_TINY = 1e-300


def student_95(freedom: float) -> float:
    """What |t| exceeds with a chance of 5 %, for `freedom` > 0, which need be no whole number."""
    return math.sqrt(f_95(1.0, freedom))


def f_95(numerator: float, denominator: float) -> float:
    """What F exceeds with a chance of 5 %, for these degrees of freedom, both above 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _incomplete_beta(middle, denominator / 2, numerator / 2) < 0.05:
            low = middle
        else:
            high = middle
    return denominator * (1 - high) / (numerator * high)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) for 0 < x < 1."""
    if x > (a + 1) / (a + b + 2):  # there the fraction converges slowly
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-12:
            break
    return math.exp(log_front) * fraction / a


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY

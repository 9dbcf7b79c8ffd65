"""Numbers as text, no longer than what they stand for deserves."""

from __future__ import annotations

import math
from collections.abc import Iterable

from megatron_fastmix.result.rounding import default_decimals


def short(value: float) -> str:
    """A short text for a number on an axis or in a table."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        return f"{value:.2e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def amount(count: float | None) -> str:
    """Such as `13.7 M`; a dash where it is not known."""
    if count is None:
        return "–"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        # As three digits round it: 999,999 is 1 M.
        if float(f"{count:.3g}") >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def decimals(errors: Iterable[float]) -> int:
    """Decimal places of a column of shares: up to the first digit that moves in the root mean
    square of `errors`, at least 2, at most those of a blend of so many; 3 where nothing moves."""
    squares = [error * error for error in errors]
    size = math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0
    if size == 0:
        return 3
    return min(default_decimals(len(squares)), max(2, -math.floor(math.log10(size))))


def share(value: float, places: int) -> str:
    """A share of `places` decimals; one that would read as 0 says what it is below."""
    least = 10.0**-places
    return f"<{least:.{places}f}" if 0 < value < least / 2 else f"{value:.{places}f}"


def with_error(value: float, error: float | None) -> str:
    """`+0.0123 ± 0.0021`: two digits of the error, and the value as far; three digits without."""
    if error is None or not 0 < error < math.inf:
        return f"{value:+.3g}"
    places = 1 - math.floor(math.log10(error))
    if places > 6 or places < 0:
        return f"{value:+.2e} ± {error:.1e}"
    return f"{value:+.{places}f} ± {error:.{places}f}"

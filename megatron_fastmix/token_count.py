"""Numbers of tokens as people write them."""

from __future__ import annotations

import argparse
import math

_LARGEST = 2**63
"""What a configuration can hold, and more than anybody has."""
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def token_count(text: str) -> int:
    """300000000000, 3e11, 300B, 300b or 0.3T as a number of tokens; an `argparse` type."""
    plain = text.strip().replace("_", "").replace(",", "").upper()
    unit = plain[-1:] if plain[-1:] in ("K", "M", "B", "T") else ""
    try:
        number = float(plain.removesuffix(unit)) * _UNITS[unit]
    except ValueError:
        number = math.nan
    if not 1 <= number < _LARGEST:
        raise argparse.ArgumentTypeError(
            f"found {text!r}; write a number of tokens below 2^63, such as 300B, 3e11 or "
            "300000000000"
        )
    return round(number)

"""Lengths of time as text."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Such as `42 s`, `6 min 13 s` or `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {second:02d} s"
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02d} min"

"""Cases of a parametrized test."""

from typing import Any

import pytest


def slow(*case: Any) -> Any:
    """A case for the whole suite alone: it widens what a quick one shows."""
    return pytest.param(*case, marks=pytest.mark.slow)

"""How a value that cannot work is refused."""

from __future__ import annotations

from typing import Any

from megatron_fastmix.errors import ConfigError


def require(condition: bool, where: str, found: Any, fix: str) -> None:
    """Raises `ConfigError` unless `condition` holds: where, what was found, how to fix it."""
    if not condition:
        raise ConfigError(f"{where}: found {found!r}; {fix}")

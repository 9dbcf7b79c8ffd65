"""Numbers of tokens in a configuration."""

from __future__ import annotations

import argparse

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.token_count import token_count


def tokens(value: int | float | str | None, where: str) -> int | None:
    """300000000000, 300e9 or 300B as a number; None for None. Raises `ConfigError`."""
    if value is None:
        return None
    try:
        return token_count(str(value))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{where}: {error}") from None

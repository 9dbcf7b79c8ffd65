"""Packages that come with an extra of `setup.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from megatron_fastmix.errors import ConfigError


@contextlib.contextmanager
def needs_package(package: str, what: str, extra: str = "corpus") -> Iterator[None]:
    """Around the import of a package that `what` needs: raises `ConfigError` where it is missing,
    with the extra that installs it."""
    try:
        yield
    except ImportError:
        raise ConfigError(
            f"{what} needs the package {package}: pip install 'megatron-fastmix[{extra}]'"
        ) from None

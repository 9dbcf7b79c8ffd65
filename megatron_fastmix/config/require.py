"""How a value that cannot work is refused."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from megatron_fastmix.errors import ConfigError

LONGEST_NAME = 200
"""Characters: enough to tell sources apart, and few enough for tables, tags and file names."""


def require_name(name: str, where: str) -> None:
    """Raises `ConfigError` for a name that terminals, pages and tables cannot show as it is: line
    breaks, control characters, marks that turn the direction of writing, or too long."""
    require(
        0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip(),
        where,
        name if len(name) <= LONGEST_NAME else f"{name[:40]}... of {len(name)} characters",
        f"use 1 to {LONGEST_NAME} visible characters on one line, with no space at the ends",
    )


def require_path(path: str, where: str) -> None:
    """Raises `ConfigError` for a path that no list of paths and no terminal can hold."""
    controls = {c for c in path if unicodedata.category(c) == "Cc" or c in _TURNING}
    require(
        bool(path) and not controls,
        where,
        path,
        "use a path without line breaks, control characters and marks that turn the writing",
    )


_VARIABLE = re.compile(r"\$(?:[A-Za-z_]|\{)")


def folder_as_in_a_shell(folder: str, where: str) -> str:
    """A folder to write into as a shell would have it: nobody wishes for one that is called ~ or
    $NAME. One that is there is kept: an earlier release may have written there. Raises
    `ConfigError`."""
    require_path(folder, where)
    if os.path.exists(folder):
        return folder
    require(
        not _VARIABLE.search(folder),
        where,
        folder,
        "no shell reads a configuration, so the folder would have this very name: write the value "
        "of the variable, as `echo` prints it",
    )
    return os.path.expanduser(folder)


def path_as_in_a_shell(path: str) -> str:
    """A path to read from as a shell would have it, which puts the home folder for a leading ~, but
    neither in a file nor in `--flag=~/x`. A folder that is called so is kept."""
    there = os.path.exists(path.partition(os.sep)[0])
    return path if there else os.path.expanduser(path)


def set_paths_as_in_a_shell(config: Any, names: Iterable[str]) -> None:
    """Sets those of the fields `names` that hold a path to `path_as_in_a_shell`."""
    for name in names:
        path = getattr(config, name)
        if path is not None:
            object.__setattr__(config, name, path_as_in_a_shell(path))


_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"


def require(condition: bool, where: str, found: Any, fix: str) -> None:
    """Raises `ConfigError` unless `condition` holds: where, what was found, how to fix it."""
    if not condition:
        raise ConfigError(f"{where}: found {found!r}; {fix}")


def require_at_least(config: Any, section: str, least: float, names: Iterable[str]) -> None:
    """Raises `ConfigError` for the first of the fields `names` below `least`; None passes."""
    for name in names:
        found = getattr(config, name)
        require(
            found is None or found >= least, f"{section}.{name}", found, f"use {least:g} or more"
        )


def require_positive(config: Any, section: str, names: Iterable[str]) -> None:
    """Raises `ConfigError` for the first of the fields `names` that is not above 0."""
    for name in names:
        found = getattr(config, name)
        require(found > 0, f"{section}.{name}", found, "use a number above 0")


def require_decay(config: Any, section: str, names: Iterable[str]) -> None:
    """Raises `ConfigError` for the first of the fields `names`, factors of a running mean, that is
    not in [0, 1)."""
    for name in names:
        found = getattr(config, name)
        require(0 <= found < 1, f"{section}.{name}", found, "use a factor from 0 to below 1")


def require_bounds(least: float, most: float, owner: str) -> None:
    """Raises `ConfigError` unless a share can lie from `least` to `most`; `owner` names whose."""
    require(
        0 <= least <= most <= 1 and most > 0,
        f"{owner}: min_weight and max_weight",
        [least, most],
        "use shares with 0 ≤ min_weight ≤ max_weight ≤ 1 and max_weight > 0",
    )

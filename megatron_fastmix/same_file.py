"""Whether two paths mean one file, however they are spelled."""

from __future__ import annotations

import os
from collections.abc import Hashable
from pathlib import Path


def file_keys(path: str | Path) -> set[Hashable]:
    """What tells the file at `path`: its path without links, and its inode where it exists.

    Two paths mean one file exactly if their keys have one in common: relative and absolute paths,
    symbolic and hard links, and other capitals where the file system ignores them.
    """
    keys: set[Hashable] = {os.path.realpath(path)}
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # missing, or no path at all
        return keys
    return keys | {(status.st_dev, status.st_ino)}


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether both paths mean one file; they need not exist."""
    return not file_keys(one).isdisjoint(file_keys(other))


def dataset_keys(prefix: str | Path) -> set[Hashable]:
    """What tells an indexed dataset: two that share `PREFIX.bin` or `PREFIX.idx` have a key in
    common."""
    return {(end, key) for end in (".bin", ".idx") for key in file_keys(f"{prefix}{end}")}

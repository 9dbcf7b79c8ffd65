"""The limits of the system on open files and memory maps: raised where we may, else named."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

from megatron_fastmix.batch.open_files import open_files
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus.indexed.answer_rows import is_answer_only
from megatron_fastmix.errors import ConfigError

MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")


def raise_open_files() -> None:
    """Raises this process's limit of open files, and that of those it starts, to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where the system refuses, the limit stays, and `check_limits` says whether it is enough.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_limits(config: SearchConfig) -> None:
    """Raises `ConfigError` where a rank would need more files or maps than this host gives it.

    Raises the limit of open files first, and `DataError` for a source without a dataset.
    """
    raise_open_files()
    prefixes = config.prefixes()
    answers = sum(map(is_answer_only, prefixes))
    needed = open_files(len(prefixes) - answers, answers)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    counted = f"{len(prefixes):,} datasets need"
    if files != resource.RLIM_INFINITY and needed.files > files:
        raise ConfigError(
            f"RLIMIT_NOFILE: {counted} {needed.files:,} open files in each rank, and the hard "
            f"limit here is {files:,} (ulimit -Hn); raise it in /etc/security/limits.conf or the "
            "container's settings, or merge datasets with Megatron's tools/merge_datasets.py"
        )
    maps = _max_map_count()
    if maps is not None and needed.maps > maps:
        raise ConfigError(
            f"vm.max_map_count: {counted} {needed.maps:,} memory maps in each rank, and the limit "
            f"here is {maps:,}; raise it with sysctl -w vm.max_map_count={2 * needed.maps}, or "
            "merge datasets with Megatron's tools/merge_datasets.py"
        )


def _max_map_count() -> int | None:
    try:
        return int(MAX_MAP_COUNT.read_text())
    except (OSError, ValueError):  # not Linux
        return None

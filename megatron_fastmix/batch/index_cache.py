"""Where Megatron-core caches the indices of datasets: by their content, and never damaged.

Megatron names a cached index after the dataset's path and the options. So an index of what was at
that path before would be read for what is there now: samples would be missing, or lie outside it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from megatron_fastmix.checkpoint.identity import fingerprint, sample_bytes_for
from megatron_fastmix.errors import DataError

_UNCHANGED_SECONDS = 15.0
"""A file that has not grown for so long is not being written: file systems that many share stand
still for seconds."""


def index_cache(cache_path: str | Path, prefixes: Sequence[str]) -> Path:
    """The folder in `cache_path` for the indices of these datasets as they are now.

    Removes indices in it that are damaged, as a kill leaves them in the middle of their writing;
    waits for those that another run is writing. Every rank must call, and sees the same content.
    Raises `DataError` for a dataset that cannot be read.
    """
    try:
        size = sample_bytes_for(len(prefixes))
        each = [fingerprint(prefix, size) for prefix in prefixes]
        digest = hashlib.sha256("".join(each).encode()).hexdigest()
    except OSError as error:
        raise DataError(f"{error.filename}: cannot read the dataset: {error.strerror}") from None
    folder = Path(cache_path) / digest[:32]
    distributed = torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        _remove_damaged(folder)
    if distributed:
        torch.distributed.barrier()
    return folder


def _remove_damaged(folder: Path) -> None:
    before: dict[Path, int] = {}
    while damaged := {f: _size(f) for f in folder.glob("*.npy") if not _is_whole(f)}:
        abandoned = [file for file, size in damaged.items() if before.get(file) == size]
        for file in abandoned:
            file.unlink(missing_ok=True)
        if len(abandoned) == len(damaged):
            return
        before = damaged
        time.sleep(_UNCHANGED_SECONDS)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _is_whole(file: Path) -> bool:
    """Whether all of the array is there that the file's head announces."""
    try:
        np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return False
    return True

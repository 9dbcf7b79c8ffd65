"""Where Megatron-core caches the indices of datasets: by their content, and never damaged.

Megatron names a cached index after the dataset's path and the options. So an index of what was at
that path before would be read for what is there now: samples would be missing, or lie outside it.
And it writes an index in place: of two runs that share a cache, one would read what the other has
half written, or have mapped what the other cuts off to write it again.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets import gpt_dataset

from megatron_fastmix.checkpoint.identity import fingerprint, sample_bytes_for
from megatron_fastmix.errors import DataError

_PROGRAM = uuid.uuid4().hex
"""Forked processes share it, those of containers may share the process number."""


def index_cache(cache_path: str | Path, prefixes: Sequence[str]) -> Path:
    """The folder in `cache_path` for the indices of these datasets as they are now.

    Removes indices in it that are damaged. Every rank must call, and sees the same content.
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


class GPTDataset(gpt_dataset.GPTDataset):
    """Megatron's, under its name, which names the cached index. An index is written in a folder of
    this process and moved to its place where none is there yet: a file is there whole or not at
    all, and what another run has mapped stays as it is."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # Megatron hands the mask of the first sample that a process reads, with the holes where
        # that one has padding tokens, on to all others: a resumed run would begin with another.
        self.masks_and_position_ids_are_cacheable = False

    def _build_document_sample_shuffle_indices(self) -> Any:
        shared = self.config.path_to_cache
        base = f"{self.unique_description_hash}-{type(self).__name__}-{self.index_split.name}"
        ends = ("description.txt", "document_index.npy", "sample_index.npy", "shuffle_index.npy")
        distributed = torch.distributed.is_initialized()
        if (distributed and torch.distributed.get_rank() != 0) or all(
            os.path.isfile(os.path.join(shared, f"{base}-{end}")) for end in ends
        ):
            return super()._build_document_sample_shuffle_indices()
        aside = folder_aside(shared)
        self.config.path_to_cache = str(aside)
        try:
            indices = super()._build_document_sample_shuffle_indices()
        finally:
            self.config.path_to_cache = shared
        for file in aside.iterdir():
            # Files of a name have the same content, whoever wrote them.
            if not (Path(shared) / file.name).exists():
                os.replace(file, Path(shared) / file.name)
        return indices


def folder_aside(cache: str | Path) -> Path:
    """The folder in a cache in which this process writes indices."""
    return Path(cache) / f".{_PROGRAM}-{os.getpid()}"


def _remove_damaged(folder: Path) -> None:
    for file in folder.glob("*.npy"):
        if not _is_whole(file):
            file.unlink(missing_ok=True)


def _is_whole(file: Path) -> bool:
    """Whether all of the array is there that the file's head announces."""
    try:
        np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return False
    return True

"""Checking indexed datasets without Megatron or torch: what they hold, whether they are whole."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_fastmix.corpus.writer import DTYPE_CODES, INDEX_MAGIC, INDEX_VERSION
from megatron_fastmix.errors import DataError

_HEADER = struct.Struct("<9sQBQQ")
_BLOCK_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class IndexedSummary:
    """What an index says about its dataset."""

    documents: int
    sequences: int
    tokens: int
    dtype: str
    """NumPy name of the type of the ids, such as uint16."""
    longest_sequence: int
    """Tokens; 0 in a dataset without sequences."""


def inspect_indexed_dataset(prefix: str | Path) -> IndexedSummary:
    """Reads the index at `prefix` and checks that both files are complete and belong together.

    Raises `DataError` for files that are missing, empty, truncated or not Megatron's.
    """
    index_path, data_path = f"{prefix}.idx", f"{prefix}.bin"
    sizes = {path: _size(path) for path in (index_path, data_path)}
    with open(index_path, "rb") as file:
        header = file.read(_HEADER.size)
    if not header.startswith(INDEX_MAGIC[: len(header)]):
        raise DataError(
            f"{index_path}: not a Megatron index: it begins with {header[:9]!r}, expected "
            f"{INDEX_MAGIC!r}; give the prefix of a dataset made by preprocess"
        )
    if len(header) < _HEADER.size:
        raise DataError(_truncated(index_path, sizes[index_path], _HEADER.size))
    _, version, code, sequences, indices = _HEADER.unpack(header)
    if version != INDEX_VERSION or code not in DTYPE_CODES or indices < 1:
        raise DataError(
            f"{index_path}: found version {version}, type code {code} and {indices} document "
            f"indices; expected version {INDEX_VERSION}, a code from 1 to 8 and at least 1 index; "
            "preprocess the corpus again"
        )
    expected = _HEADER.size + 12 * sequences + 8 * indices
    # Multimodal datasets add one byte per sequence.
    if sizes[index_path] not in {expected, expected + sequences}:
        raise DataError(_truncated(index_path, sizes[index_path], expected))
    dtype = np.dtype(DTYPE_CODES[code])
    tokens = longest = 0
    if sequences:
        lengths = np.memmap(index_path, np.int32, "r", offset=_HEADER.size, shape=(sequences,))
        tokens, longest = int(lengths.sum(dtype=np.int64)), int(lengths.max())
    if sizes[data_path] != tokens * dtype.itemsize:
        raise DataError(_truncated(data_path, sizes[data_path], tokens * dtype.itemsize))
    return IndexedSummary(
        documents=indices - 1,
        sequences=sequences,
        tokens=tokens,
        dtype=dtype.name,
        longest_sequence=longest,
    )


def sequence_lengths(prefix: str | Path) -> np.ndarray:
    """Tokens of each sequence, int64 (sequences,). Raises `DataError` as `inspect_indexed_dataset`
    does."""
    count = inspect_indexed_dataset(prefix).sequences
    lengths = np.fromfile(f"{prefix}.idx", dtype="<i4", count=count, offset=_HEADER.size)
    return lengths.astype(np.int64)


def check_vocabulary(prefix: str | Path, vocab_size: int, *, max_tokens: int = 500_000_000) -> None:
    """Raises `DataError` if an id is outside [0, vocab_size).

    Datasets of up to `max_tokens` are read whole; of larger ones that many tokens: the beginning,
    the end and evenly spaced blocks between.
    """
    summary = inspect_indexed_dataset(prefix)
    if not summary.tokens:
        return
    path = f"{prefix}.bin"
    tokens = np.memmap(path, np.dtype(summary.dtype), "r")
    starts = np.arange(0, summary.tokens, _BLOCK_TOKENS)
    allowed = max(2, max_tokens // _BLOCK_TOKENS)
    if len(starts) > allowed:
        starts = starts[np.linspace(0, len(starts) - 1, allowed).astype(np.int64)]
    for start in starts.tolist():
        block = tokens[start : start + _BLOCK_TOKENS]
        low, high = int(block.min()), int(block.max())
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            at = start + int(np.argmax(block == bad))
            raise DataError(
                f"{path}: token {at} is id {bad}, but the tokenizer has only {vocab_size} ids; "
                "the dataset was written by another tokenizer: configure that one, or preprocess "
                "the corpus again"
            )


def _size(path: str) -> int:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the dataset: {error.strerror}; give the prefix of an indexed "
            "dataset, without .bin and .idx"
        ) from None
    if size == 0:
        raise DataError(f"{path}: the file is empty; preprocess the corpus again")
    return size


def _truncated(path: str, found: int, expected: int) -> str:
    relation = "truncated" if found < expected else "too long"
    return (
        f"{path}: {relation}: {found:,} bytes found, {expected:,} expected; copy or preprocess the "
        "dataset again"
    )

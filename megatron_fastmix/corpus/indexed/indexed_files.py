"""Checking indexed datasets without Megatron or torch: what they hold, whether they are whole."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from megatron_fastmix.corpus.indexed.writer import DTYPE_CODES, INDEX_MAGIC, INDEX_VERSION
from megatron_fastmix.dataset_paths import nearest_dataset, what_stands_there
from megatron_fastmix.errors import DataError
from megatron_fastmix.file_memo import MEMO, State, state_of
from megatron_fastmix.text_files import check_no_pointer

_HEADER = struct.Struct("<9sQBQQ")
_BLOCK_TOKENS = 1 << 20
_LEAST_BLOCK_TOKENS = 1 << 13
_BLOCK_ENTRIES = 1 << 20
_MADE_WRONG = "the index was made or merged wrongly: make the dataset again"


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

    Every length, offset and document index is checked, as Megatron asserts some of it in the middle
    of a start and believes the rest. Raises `DataError` for files that are missing, empty,
    truncated, contradict themselves or are not Megatron's.
    """
    index_path, data_path = f"{prefix}.idx", f"{prefix}.bin"
    question = index_question(prefix)
    known = MEMO.find(*question)
    if known is not None:
        return IndexedSummary(**dict(zip(IndexedSummary.__annotations__, known, strict=True)))
    index_state, data_state = question[-2:]
    try:
        sizes = {index_path: index_state[0], data_path: data_state[0]}
        summary = _read_index(index_path, data_path, sizes)
    except OSError as error:
        raise DataError(f"{index_path}: cannot read the dataset: {error.strerror}") from None
    MEMO.keep(astuple(summary), *question)
    return summary


def index_question(prefix: str | Path) -> tuple[str, str, State, State]:
    """What `inspect_indexed_dataset` answers, for the memo. Raises `DataError` for a file that is
    missing or empty."""
    return "index", os.path.abspath(prefix), _state(f"{prefix}.idx"), _state(f"{prefix}.bin")


def index_counts(prefix: str | Path) -> tuple[int, int]:
    """Tokens and documents of a dataset by the head of its index and the size of its ids, where
    another process of this host checks the rest with `inspect_indexed_dataset`: 34 bytes are read,
    of an index of any length, or none where that process has handed on what it found. Raises
    `DataError` for what has no such head."""
    index_path = f"{prefix}.idx"
    question = index_question(prefix)
    if MEMO.find(*question) is not None:
        summary = inspect_indexed_dataset(prefix)
        return summary.tokens, summary.documents
    size = question[-1][0]
    try:
        with open(index_path, "rb") as file:
            head = file.read(_HEADER.size)
    except OSError as error:
        raise DataError(f"{index_path}: cannot read the dataset: {error.strerror}") from None
    whole = head if len(head) == _HEADER.size else bytes(_HEADER.size)
    magic, _, code, _, indices = _HEADER.unpack(whole)
    if magic != INDEX_MAGIC or code not in DTYPE_CODES:
        check_no_pointer(index_path)
        raise DataError(f"{index_path}: not a Megatron index; give the prefix of a dataset")
    return size // np.dtype(DTYPE_CODES[code]).itemsize, indices - 1


def _read_index(index_path: str, data_path: str, sizes: dict[str, int]) -> IndexedSummary:
    with open(index_path, "rb") as file:
        header = file.read(_HEADER.size)
    if not header.startswith(INDEX_MAGIC[: len(header)]):
        check_no_pointer(index_path)
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
    if dtype.kind == "f":
        raise DataError(f"{index_path}: its ids are {dtype.name}; expected whole numbers")
    content = np.memmap(index_path, np.uint8, "r")
    tokens, longest = _check_sequences(index_path, content, sequences, dtype.itemsize)
    _check_documents(index_path, content, sequences, indices)
    if content[expected:].any():
        raise DataError(
            f"{index_path}: has sequences of another mode than text, such as images; give a "
            "dataset of text alone"
        )
    if sizes[data_path] != tokens * dtype.itemsize:
        raise DataError(_truncated(data_path, sizes[data_path], tokens * dtype.itemsize))
    return IndexedSummary(
        documents=indices - 1,
        sequences=sequences,
        tokens=tokens,
        dtype=dtype.name,
        longest_sequence=longest,
    )


def _check_sequences(
    path: str, content: np.ndarray, sequences: int, itemsize: int
) -> tuple[int, int]:
    """Tokens of all sequences and of the longest. Raises `DataError` for a negative length, and for
    an offset that is not the end of the sequence before."""
    lengths = content[_HEADER.size :][: 4 * sequences].view("<i4")
    offsets = content[_HEADER.size + 4 * sequences :][: 8 * sequences].view("<i8")
    tokens = longest = 0
    for first in range(0, sequences, _BLOCK_ENTRIES):
        block = lengths[first : first + _BLOCK_ENTRIES].astype(np.int64)
        if block.min() < 0:
            at = int(np.argmax(block < 0))
            raise DataError(f"{path}: sequence {first + at} has {block[at]} tokens; {_MADE_WRONG}")
        ends = np.cumsum(block) + tokens
        wrong = np.flatnonzero(offsets[first : first + _BLOCK_ENTRIES] != (ends - block) * itemsize)
        if len(wrong):
            at = int(wrong[0])
            raise DataError(
                f"{path}: sequence {first + at} begins at byte {offsets[first + at]}, but the "
                f"sequences before it end at byte {(ends[at] - block[at]) * itemsize}; "
                f"{_MADE_WRONG}"
            )
        tokens, longest = int(ends[-1]), max(longest, int(block.max()))
    return tokens, longest


def _check_documents(path: str, content: np.ndarray, sequences: int, indices: int) -> None:
    """Raises `DataError` unless the document indices go from 0 up to the number of sequences."""
    documents = content[_HEADER.size + 12 * sequences :][: 8 * indices].view("<i8")
    if documents[0] != 0:
        raise DataError(
            f"{path}: the first document index is {documents[0]}, expected 0; {_MADE_WRONG}"
        )
    if documents[-1] != sequences:
        raise DataError(
            f"{path}: the last document index is {documents[-1]}, but the dataset has {sequences} "
            f"sequences; {_MADE_WRONG}"
        )
    for first in range(0, indices, _BLOCK_ENTRIES):
        block = documents[first : first + _BLOCK_ENTRIES + 1]
        down = np.flatnonzero(block[1:] < block[:-1])
        if len(down):
            at = int(down[0])
            raise DataError(
                f"{path}: document index {first + at + 1} is {block[at + 1]}, smaller than the "
                f"{block[at]} before it; {_MADE_WRONG}"
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
    path = f"{prefix}.bin"
    question = "ids", *index_question(prefix), vocab_size, max_tokens
    if not summary.tokens or MEMO.find(*question):
        return
    tokens = np.memmap(path, np.dtype(summary.dtype), "r")
    block_tokens = min(_BLOCK_TOKENS, max(_LEAST_BLOCK_TOKENS, max_tokens // 8))
    starts = np.arange(0, summary.tokens, block_tokens)
    allowed = max(2, max_tokens // block_tokens)
    if len(starts) > allowed:
        starts = starts[np.linspace(0, len(starts) - 1, allowed).astype(np.int64)]
    for start in starts.tolist():
        block = tokens[start : start + block_tokens]
        low, high = int(block.min()), int(block.max())
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            at = start + int(np.argmax(block == bad))
            raise DataError(
                f"{path}: token {at} is id {bad}, but the tokenizer has only {vocab_size} ids, or "
                "the model embeds no more; the dataset was written by another tokenizer: configure "
                "that one, or preprocess the corpus again. Megatron's --legacy-tokenizer adds "
                "tokens past the model's: state its end token as tokenizer.eod"
            )
    MEMO.keep(True, *question)


def _state(path: str) -> State:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        near = None
        if isinstance(error, FileNotFoundError):
            near = nearest_dataset(path[:-4]) or what_stands_there(path)
        raise DataError(
            f"{path}: cannot read the dataset: {reason}; give the prefix of an indexed "
            "dataset, without .bin and .idx" + (f"; {near}" if near else "")
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: no file; give the prefix of an indexed dataset")
    if status.st_size == 0:
        raise DataError(f"{path}: the file is empty; preprocess the corpus again")
    return state_of(status)


def _truncated(path: str, found: int, expected: int) -> str:
    check_no_pointer(path)
    relation = "truncated" if found < expected else "too long"
    return (
        f"{path}: {relation}: {found:,} bytes found, {expected:,} expected; copy or preprocess the "
        "dataset again"
    )

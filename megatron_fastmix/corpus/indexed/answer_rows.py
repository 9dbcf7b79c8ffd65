"""How many tokens of each row count in the loss. Reads files alone, neither Megatron nor torch."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.corpus.indexed.indexed_files import (
    index_question,
    inspect_indexed_dataset,
    sequence_lengths,
)
from megatron_fastmix.corpus.indexed.manifest import read_manifest
from megatron_fastmix.dataset_paths import loss_mask_prefix
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.file_memo import MEMO, digest_of


@dataclass(frozen=True, kw_only=True)
class AnswerRows:
    """The rows of an answer-only dataset, cut to a sequence length."""

    answer_tokens: np.ndarray
    """int64 (rows,): tokens of each row that count in the loss after the cut."""
    whole: np.ndarray
    """int64 (rows,): the same without the cut."""
    tokens: np.ndarray
    """int64 (rows,): tokens that a forward pass reads after the cut."""

    @property
    def kept(self) -> np.ndarray:
        """Indices of the rows with anything to learn, int64."""
        return np.flatnonzero(self.answer_tokens)


@dataclass(frozen=True, kw_only=True)
class AnswerCounts:
    """What a search needs to know of all rows of an answer-only dataset together."""

    rows: int
    kept_rows: int
    """Those with anything to learn."""
    tokens: int
    """Tokens that forward passes over all rows read after the cut."""
    answer_tokens: int
    """Of all rows, after the cut."""
    cut_rows: int
    """Rows whose answer the sequence length cuts."""
    kept: np.ndarray | None = field(default=None, compare=False, repr=False)
    """`AnswerRows.kept`, where this process has read the rows itself."""

    @property
    def mean_answer_tokens(self) -> float:
        """Answer tokens per kept row."""
        return self.answer_tokens / self.kept_rows

    @property
    def cut_share(self) -> float:
        """Share of the rows whose answer the sequence length cuts."""
        return self.cut_rows / self.rows


def is_answer_only(prefix: str | Path) -> bool:
    """Whether a loss mask lies beside the dataset, as `preprocess` writes for such records."""
    return Path(f"{loss_mask_prefix(prefix)}.idx").exists()


def check_mask(prefix: str | Path) -> bool:
    """Whether the dataset is answer-only. Raises `DataError` where its loss mask is lost or cut
    off, which would make text of its rows, or is of another type or size."""
    mask = loss_mask_prefix(prefix)
    missing = [end for end in (".idx", ".bin") if not Path(f"{mask}{end}").exists()]
    if len(missing) == 2:
        manifest = read_manifest(prefix)
        if manifest is None or manifest.loss_mask_tokens is None:
            return False
    if missing:
        raise DataError(
            f"{mask}{missing[0]}: is missing, so that questions would be learned as answers are; "
            "copy the dataset whole (PREFIX and PREFIX_loss_mask), or preprocess it again"
        )
    found, own = inspect_indexed_dataset(mask), inspect_indexed_dataset(prefix)
    if found.dtype != "uint8":
        raise DataError(
            f"{mask}: is of {found.dtype}, a loss mask of uint8; it is another dataset: preprocess "
            f"{prefix} again"
        )
    if (found.sequences, found.tokens) != (own.sequences, own.tokens):
        raise DataError(
            f"{mask}: has {found.sequences:,} sequences of {found.tokens:,} entries for "
            f"{own.sequences:,} of {own.tokens:,} tokens; it is of another dataset: preprocess "
            f"{prefix} again"
        )
    return True


def check_one_kind(name: str, answer_only: Mapping[str, bool]) -> None:
    """Raises `ConfigError` where the datasets of `name` are not all answer-only or all text."""
    kinds = {kind: prefix for prefix, kind in answer_only.items()}
    if len(kinds) > 1:
        raise ConfigError(
            f"{name}: {kinds[True]} is answer-only, {kinds[False]} is plain text; all datasets of "
            "a source, target or test are of one kind: make two of them"
        )


def read_answer_rows(prefix: str | Path, seq_length: int) -> AnswerRows:
    """Counts the labels of every row at `prefix` that count in the loss.

    A row of n tokens gives min(n − 1, seq_length) labels, the tokens from its second on. Raises
    `DataError` where the loss mask is damaged, has other rows than the dataset, or marks nothing.
    """
    mask_prefix = loss_mask_prefix(prefix)
    check_mask(prefix)
    lengths = sequence_lengths(prefix)
    if not np.array_equal(lengths, sequence_lengths(mask_prefix)):
        raise DataError(
            f"{mask_prefix}: its sequences have other lengths than those of {prefix}; "
            "preprocess the dataset again"
        )
    mask = np.memmap(f"{mask_prefix}.bin", dtype=np.uint8, mode="r")
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    first = starts + np.minimum(lengths, 1)  # a row of another's may be empty
    whole = _sums(mask, first, starts + lengths)
    cut = _sums(mask, first, starts + np.minimum(lengths, seq_length + 1))
    if not cut.any():
        raise DataError(
            f"{prefix}: no row has an answer within {seq_length} tokens; raise data.seq_length, or "
            "check the records' answers"
        )
    tokens = np.clip(lengths - 1, 0, seq_length)
    return AnswerRows(answer_tokens=cut, whole=whole, tokens=tokens)


def count_answer_rows(prefix: str | Path, seq_length: int) -> AnswerCounts:
    """`read_answer_rows` in numbers; nothing is read where it is known. Raises `DataError` as it
    does."""
    question = _question(prefix, seq_length)
    known = MEMO.find(*question)
    if known is not None:
        return AnswerCounts(**known)
    rows = read_answer_rows(prefix, seq_length)
    kept = rows.kept
    counts: dict[str, int] = {
        "rows": len(rows.tokens),
        "kept_rows": len(kept),
        "tokens": int(rows.tokens.sum()),
        "answer_tokens": int(rows.answer_tokens.sum()),
        "cut_rows": int((rows.answer_tokens < rows.whole).sum()),
    }
    MEMO.keep(counts, *question)
    return AnswerCounts(**counts, kept=kept)


def kept_rows(prefix: str | Path, seq_length: int, cache: str | Path) -> np.ndarray:
    """`AnswerRows.kept`, int64, mapped from a file in `cache` that the processes of a host share;
    the first one writes it. Raises `DataError` as `read_answer_rows` does."""
    file = _kept_file(prefix, seq_length, cache)
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or damaged
        kept = read_answer_rows(prefix, seq_length).kept
    share_kept_rows(prefix, seq_length, cache, kept)
    return kept


def share_kept_rows(
    prefix: str | Path, seq_length: int, cache: str | Path, kept: np.ndarray
) -> None:
    """Writes the file that `kept_rows` maps; where that cannot be, each process reads itself."""
    content = io.BytesIO()
    np.save(content, kept)
    with contextlib.suppress(OSError):
        write_atomically(_kept_file(prefix, seq_length, cache), content.getvalue())


def _kept_file(prefix: str | Path, seq_length: int, cache: str | Path) -> Path:
    return Path(cache) / f"rows-{digest_of(*_question(prefix, seq_length))}.npy"


def _question(prefix: str | Path, seq_length: int) -> tuple[Any, ...]:
    mask = index_question(loss_mask_prefix(prefix))
    return "rows", *index_question(prefix), *mask, seq_length


def _sums(mask: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Σ mask[start:end] of each pair, reading a block of rows at a time."""
    totals = np.zeros(len(starts), dtype=np.int64)
    block = 1 << 16
    for first in range(0, len(starts), block):
        low, high = starts[first : first + block], ends[first : first + block]
        base, top = int(low.min()), int(high.max())
        running = np.concatenate([[0], np.cumsum(mask[base:top], dtype=np.int64)])
        totals[first : first + block] = running[np.maximum(high, low) - base] - running[low - base]
    return totals

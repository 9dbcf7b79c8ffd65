"""What indexed datasets hold: lengths, samples as text, and how much of a target a source has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_fastmix.corpus.indexed.answer_rows import is_answer_only
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset, sequence_lengths
from megatron_fastmix.corpus.tokenizers.tokenizer_interface import Tokenizer
from megatron_fastmix.dataset_paths import loss_mask_prefix
from megatron_fastmix.errors import ConfigError, DataError

BLOCK_TOKENS = 1 << 22
LEARNED = ("⟦", "⟧")
"""Marks around what counts in the loss."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplying by it loses nothing modulo 2⁶⁴."""


@dataclass(frozen=True, kw_only=True)
class LengthStatistics:
    """Tokens per sequence; a plain document is one sequence."""

    sequences: int
    mean: float
    median: float
    percentile_95: float
    longest: int


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of a target a source has, as shares of the target."""

    equal: float
    """Sequences of the target that are a sequence of the source, token for token."""
    touched: float
    """Sequences of the target that share a run of n tokens with the source."""
    runs: float
    """Runs of n tokens of the target that the source has."""


def length_statistics(prefix: str | Path) -> LengthStatistics:
    """Raises `DataError` for a dataset that is damaged."""
    lengths = sequence_lengths(prefix)
    if not len(lengths):
        return LengthStatistics(sequences=0, mean=0, median=0, percentile_95=0, longest=0)
    median, high = np.percentile(lengths, [50, 95])
    return LengthStatistics(
        sequences=len(lengths),
        mean=float(lengths.mean()),
        median=float(median),
        percentile_95=float(high),
        longest=int(lengths.max()),
    )


def sample_texts(
    prefix: str | Path, tokenizer: Tokenizer, count: int, *, tokens: int = 64, seed: int = 0
) -> list[str]:
    """At most `tokens` tokens of each of `count` sequences drawn by `seed`, as text.

    The beginning, or where the answer of an answer-only row begins later, what is around that.
    Special tokens are shown by name, and what counts in the loss stands in `LEARNED` marks where a
    loss mask lies beside the dataset. Raises `DataError` for damaged files, and for ids that are
    none of the tokenizer's.
    """
    lengths = sequence_lengths(prefix)
    chosen = np.random.default_rng(seed).permutation(len(lengths))[:count]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = _open(prefix)
    mask = _open(loss_mask_prefix(prefix)) if is_answer_only(prefix) else None
    if mask is not None and len(mask) != len(ids):
        raise DataError(f"{prefix}: its loss mask has {len(mask)} entries for {len(ids)} tokens")
    texts = []
    for i in sorted(chosen.tolist()):
        row = slice(int(starts[i]), int(starts[i + 1]))
        learned = mask[row] if mask is not None else np.zeros(0, np.uint8)
        first = int(np.argmax(learned)) if learned.any() else 0
        at = max(0, first - tokens // 2) if first >= tokens - 8 else 0
        part = slice(row.start + at, min(row.start + at + tokens, row.stop))
        found = ids[part].tolist()
        wrong = next((token for token in found if not 0 <= token < tokenizer.vocab_size), None)
        if wrong is not None:
            raise DataError(
                f"{prefix}: holds the id {wrong}, the tokenizer has {tokenizer.vocab_size}; "
                "name the tokenizer that wrote the dataset"
            )
        flags = mask[part].tolist() if mask is not None else [0] * len(found)
        texts.append(("…" if at else "") + _shown(found, flags, tokenizer))
    return texts


def _shown(ids: list[int], learned: list[int], tokenizer: Tokenizer) -> str:
    """Text of the ids with special tokens by name and what is learned in marks."""
    pieces, before = [], ""
    for number, (token, flag) in enumerate(zip(ids, learned, strict=True)):
        if flag and (not number or not learned[number - 1]):
            pieces.append(LEARNED[0])
        name = tokenizer.show(token)
        last = number == len(ids) - 1
        # Text is decoded up to the next change, as a character may take several tokens.
        if name is not None:
            pieces.append(name)
        elif last or learned[number + 1] != flag or tokenizer.show(ids[number + 1]) is not None:
            plain = [i for i in ids[: number + 1] if tokenizer.show(i) is None]
            whole = tokenizer.decode(plain)
            pieces.append(whole[len(before) :])
            before = whole
        if flag and (last or not learned[number + 1]):
            pieces.append(LEARNED[1])
    return "".join(pieces)


def overlap(source: str | Path, target: str | Path, ngram: int = 13) -> Overlap:
    """How much of `target` is in `source`, by runs of `ngram` tokens (13 as in GPT-3's appendix C).

    Memory is that of the target's runs and of one block of the source, so the target may be any
    size and the source larger than memory. Hashes are 64 bits; a false match has a chance of about
    runs of both datasets multiplied, over 10¹⁹. Raises `DataError` for damaged files.
    """
    if ngram < 1:
        raise ConfigError(f"--ngram: found {ngram}; use 1 or more")
    hashes, owners = _all_runs(target, ngram)
    known = np.unique(hashes)
    wholes = _whole_hashes(target)
    unique_wholes = np.unique(wholes)
    seen = np.zeros(len(known), dtype=bool)
    whole_seen = np.zeros(len(unique_wholes), dtype=bool)
    for tokens, lengths in _blocks(source):
        _mark(known, seen, _runs(tokens, lengths, ngram)[0])
        _mark(unique_wholes, whole_seen, _sequence_hashes(tokens, lengths))
    hit = seen[np.searchsorted(known, hashes)] if len(known) else np.zeros(0, dtype=bool)
    sequences = max(len(wholes), 1)
    return Overlap(
        equal=float(whole_seen[np.searchsorted(unique_wholes, wholes)].sum()) / sequences,
        touched=len(np.unique(owners[hit])) / sequences,
        runs=float(hit.mean()) if len(hit) else 0.0,
    )


def _mark(known: np.ndarray, seen: np.ndarray, found: np.ndarray) -> None:
    if len(known) and len(found):
        at = np.minimum(np.searchsorted(known, found), len(known) - 1)
        seen[at[known[at] == found]] = True


def _all_runs(prefix: str | Path, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    hashes, owners, done = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
    for tokens, lengths in _blocks(prefix):
        values, owner = _runs(tokens, lengths, ngram)
        hashes.append(values)
        owners.append(owner + done)
        done += len(lengths)
    return np.concatenate(hashes), np.concatenate(owners)


def _whole_hashes(prefix: str | Path) -> np.ndarray:
    found = [_sequence_hashes(tokens, lengths) for tokens, lengths in _blocks(prefix)]
    return np.concatenate([np.zeros(0, np.uint64), *found])


def _runs(tokens: np.ndarray, lengths: np.ndarray, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of `ngram` tokens within a sequence, and the sequence of each."""
    count = len(tokens) - ngram + 1
    if count < 1:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    values = np.zeros(count, np.uint64)
    for offset in range(ngram):
        values = values * _BASE + tokens[offset : offset + count]
    inside = owner[:count] == owner[ngram - 1 :]
    return values[inside], owner[:count][inside]


def _sequence_hashes(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """One hash of each whole sequence: its length, and its tokens weighted by position."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    within = np.arange(len(tokens)) - np.repeat(starts, lengths)
    mixed = (tokens + np.uint64(1)) * (within.astype(np.uint64) * _BASE | np.uint64(1))
    mixed ^= mixed >> np.uint64(29)
    mixed *= _BASE
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    sums: np.ndarray = running[starts + lengths] - running[starts]
    return sums * _BASE + lengths.astype(np.uint64)


def _blocks(prefix: str | Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Runs of whole sequences of about `BLOCK_TOKENS` tokens: tokens, uint64, and lengths."""
    lengths = sequence_lengths(prefix)
    ends = np.cumsum(lengths)
    ids = _open(prefix)
    first = 0
    while first < len(lengths):
        begin = int(ends[first] - lengths[first])
        last = int(np.searchsorted(ends, begin + BLOCK_TOKENS, side="right"))
        last = max(last, first + 1)
        yield ids[begin : ends[last - 1]].astype(np.uint64), lengths[first:last]
        first = last


def _open(prefix: str | Path) -> np.ndarray:
    summary = inspect_indexed_dataset(prefix)
    if not summary.tokens:
        return np.zeros(0, summary.dtype)
    return np.memmap(f"{prefix}.bin", dtype=summary.dtype, mode="r")

"""Fast exact BPE: text is cut where no piece can reach across, and each distinct part encoded once.

BPE joins two neighbouring symbols only if the joined text is a piece. So where no piece of the
vocabulary contains a pair of characters side by side, nothing is ever joined across that pair, and
the parts on both sides can be encoded apart with the same result. Real text repeats its parts
(words, punctuation, indentation), so nearly all of them are found in a table, with NumPy for a
whole block of text at a time.

Not so for unigram models: their best path sums float scores over the whole text, and rounding
can decide between near-equal paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from megatron_fastmix.corpus.sentencepiece_model import BPE, SentencePieceModel

SPACE_MARK = "\u2581"
"""What SentencePiece turns a space into; text that has one itself must not take the fast way."""

_SPACE, _NEWLINE, _LETTER, _DIGIT, _OTHER = range(5)
_BLOCK_BYTES = 1 << 18
_SLOTS = 1 << 19
_MAX_ENTRIES = 1 << 17
"""The table is emptied above this, so memory is bounded; a block adds fewer than fit above it."""
_MAX_POOL = 1 << 21
_INLINE_BYTES = 15
"""Parts up to this length are their own key: 15 bytes and the length in two words of 64 bits."""
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)

EncodeParts = Callable[[list[bytes]], list[list[int]]]


def choose_classes(model: SentencePieceModel) -> np.ndarray | None:
    """A class for each byte (256,) such that no piece is cut, or None where there is no such.

    Text is cut between two bytes of different classes, except after a space (a piece begins with
    its space) unless a line break follows. Bytes above 127 are letters, so no character is cut.
    Tries fine classes first (letters, digits, other), then white space alone.
    """
    plain = (
        model.model_type == BPE
        and model.byte_fallback  # otherwise neighbouring unknown characters become one
        and model.escape_whitespaces
        and not model.whitespace_as_suffix
        and not model.normalizes
        and not model.remove_extra_whitespaces
    )
    if not plain:
        return None
    letters = np.full(256, _LETTER, np.uint8)
    letters[ord(" ")], letters[ord("\n")] = _SPACE, _NEWLINE
    fine = letters.copy()
    for code in range(128):
        character = chr(code)
        if character not in " \n" and not character.isalpha():
            fine[code] = _DIGIT if character.isdigit() else _OTHER
    pieces = [piece.replace(SPACE_MARK, " ").encode() for piece in model.pieces]
    for classes in (fine, letters):
        if all(not _cuts(classes, np.frombuffer(piece, np.uint8)).any() for piece in pieces):
            return classes
    return None


def _cuts(classes: np.ndarray, text: np.ndarray) -> np.ndarray:
    """For each byte but the first (n - 1,), whether text is cut before it."""
    kinds = classes[text]
    before, after = kinds[:-1], kinds[1:]
    return (before != after) & ((before != _SPACE) | (after == _NEWLINE))


class SegmentCache:
    """Token ids of texts by table; `encode_parts` is asked for parts that are not in it."""

    def __init__(self, classes: np.ndarray, encode_parts: EncodeParts) -> None:
        self._classes = classes
        self._encode_parts = encode_parts
        self._clear()

    def _clear(self) -> None:
        # Key words of each slot; the second is 0 in an empty slot, as its top byte is the length.
        self._low = np.zeros(_SLOTS, np.uint64)
        self._high = np.zeros(_SLOTS, np.uint64)
        self._slot_entry = np.zeros(_SLOTS, np.int32)
        self._long: dict[bytes, int] = {}
        # Entry e is pool[first[e] : first[e] + count[e]].
        self._pool = np.zeros(1 << 16, np.int32)
        self._first = np.zeros(1 << 12, np.int64)
        self._count = np.zeros(1 << 12, np.int64)
        self._pool_size = self._entries = 0

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after another (tokens,) int32, and tokens of each text (texts,)."""
        sizes = np.fromiter((len(text) for text in texts), np.int64, len(texts))
        joined = b"".join(texts)
        text = np.frombuffer(joined, np.uint8)
        cut = np.ones(len(text) + 1, bool)
        if len(text) > 1:
            cut[1:-1] = _cuts(self._classes, text)
        text_ends = np.cumsum(sizes)
        cut[text_ends] = True
        edges = np.flatnonzero(cut)
        # Eight more bytes than the longest inline part, so that whole words can be read anywhere.
        padded = joined + bytes(2 * 8)
        counts = np.zeros(len(edges) - 1, np.int64)
        blocks = []
        at = 0
        while at < len(edges) - 1:
            limit = edges[at] + _BLOCK_BYTES
            stop = max(at + 1, int(np.searchsorted(edges, limit, side="right")) - 1)
            block, counts[at:stop] = self._encode_block(padded, edges[at : stop + 1])
            blocks.append(block)
            at = stop
        tokens = np.concatenate(blocks) if blocks else np.zeros(0, np.int32)
        before = np.concatenate([[0], np.cumsum(counts)])
        bounds = before[np.searchsorted(edges, np.concatenate([[0], text_ends]))]
        return tokens, np.diff(bounds)

    def _encode_block(self, text: bytes, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the parts between `edges`, and tokens of each part."""
        if self._entries > _MAX_ENTRIES or self._pool_size > _MAX_POOL:
            self._clear()
        starts, sizes = edges[:-1], np.diff(edges)
        entries = np.empty(len(starts), np.int32)
        short = sizes <= _INLINE_BYTES
        if short.all():
            entries[:] = self._find_short(text, starts, sizes)
        else:
            entries[short] = self._find_short(text, starts[short], sizes[short])
            entries[~short] = self._find_long(text, starts[~short], sizes[~short])
        counts = self._count[entries]
        # Token j of a part lies at first + j in the pool.
        ends = np.cumsum(counts)
        offsets = np.repeat(self._first[entries] - (ends - counts), counts)
        offsets += np.arange(len(offsets))
        return self._pool[offsets], counts

    def _find_short(self, text: bytes, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        # The word of 8 bytes at every byte of the text.
        words = np.ndarray((len(text) - 7,), "<u8", text, strides=(1,))
        low = words[starts] & _MASKS[np.minimum(sizes, 8)]
        high = words[starts + np.minimum(sizes, 8)] & _MASKS[np.maximum(sizes - 8, 0)]
        high |= sizes.astype(np.uint64) << np.uint64(56)
        entries, missing = self._look_up(low, high)
        if len(missing):
            order = missing[np.lexsort((low[missing], high[missing]))]
            same = (low[order[1:]] == low[order[:-1]]) & (high[order[1:]] == high[order[:-1]])
            first = np.concatenate([[True], ~same])
            distinct = order[first]
            parts = [
                text[start : start + size]
                for start, size in zip(
                    starts[distinct].tolist(), sizes[distinct].tolist(), strict=True
                )
            ]
            new = self._add(parts)
            entries[order] = new[np.cumsum(first) - 1]
            self._insert(low[distinct], high[distinct], new)
        return entries

    def _find_long(self, text: bytes, starts: np.ndarray, sizes: np.ndarray) -> list[int]:
        parts = [
            text[start : start + size]
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
        ]
        missing = [part for part in dict.fromkeys(parts) if part not in self._long]
        self._long.update(zip(missing, self._add(missing).tolist(), strict=True))
        return [self._long[part] for part in parts]

    def _add(self, parts: list[bytes]) -> np.ndarray:
        """Encodes new parts and returns their entries."""
        ids = self._encode_parts(parts)
        counts = np.fromiter((len(part) for part in ids), np.int64, len(ids))
        flat = np.fromiter((token for part in ids for token in part), np.int32, counts.sum())
        entries = np.arange(self._entries, self._entries + len(ids))
        pool_end, entry_end = self._pool_size + len(flat), self._entries + len(ids)
        self._pool = _grown(self._pool, pool_end)
        self._first = _grown(self._first, entry_end)
        self._count = _grown(self._count, entry_end)
        self._pool[self._pool_size : pool_end] = flat
        self._first[entries] = self._pool_size + np.cumsum(counts) - counts
        self._count[entries] = counts
        self._pool_size, self._entries = pool_end, entry_end
        return entries

    def _look_up(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Entries of keys, and the indices of keys that are not in the table."""
        slots = _hash(low, high)
        found = (self._low[slots] == low) & (self._high[slots] == high)
        entries = self._slot_entry[slots]
        pending = np.flatnonzero(~found)
        missing = []
        while len(pending):  # linear probing; few keys get here
            at = slots[pending]
            empty = self._high[at] == 0
            missing.append(pending[empty])
            pending = pending[~empty]
            at = (at[~empty] + 1) % _SLOTS
            slots[pending] = at
            hit = (self._low[at] == low[pending]) & (self._high[at] == high[pending])
            entries[pending[hit]] = self._slot_entry[at[hit]]
            pending = pending[~hit]
        return entries, np.concatenate(missing) if missing else pending

    def _insert(self, low: np.ndarray, high: np.ndarray, entries: np.ndarray) -> None:
        """Puts distinct new keys into the table."""
        slots = _hash(low, high)
        pending = np.arange(len(low))
        while len(pending):
            at = slots[pending]
            free = np.flatnonzero(self._high[at] == 0)
            _, winner = np.unique(at[free], return_index=True)  # one key per slot
            placed = free[winner]
            self._low[at[placed]] = low[pending[placed]]
            self._high[at[placed]] = high[pending[placed]]
            self._slot_entry[at[placed]] = entries[pending[placed]]
            pending = np.delete(pending, placed)
            slots[pending] = (slots[pending] + 1) % _SLOTS


def _hash(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    mixed = low * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= high * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(64 - _SLOTS.bit_length() + 1)).astype(np.int64)


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    if size <= len(array):
        return array
    larger = np.zeros(max(size, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger

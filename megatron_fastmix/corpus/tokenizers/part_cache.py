"""Fast exact BPE: text is cut where no piece can reach across, and each distinct part encoded once.

BPE joins two neighbouring symbols only if the joined text is a piece of the vocabulary. So where no
piece holds a pair of characters side by side, nothing is ever joined across that pair, and both
sides can be encoded apart with the same result. Real text repeats its parts (words, punctuation,
indentation), so nearly all of them are found in a table; the others are given to SentencePiece.

Not so for unigram models: their best path sums float scores over the whole text, and rounding
can decide between near-equal paths.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from megatron_fastmix.corpus.indexed.writer import token_dtype
from megatron_fastmix.corpus.tokenizers.sentencepiece_model import BPE, SentencePieceModel

try:
    from megatron_fastmix.corpus.tokenizers import _parts
except ImportError:  # installed without a compiler
    _parts = None  # type: ignore[assignment]

EncodeParts = Callable[[list[str]], list[list[int]]]
"""Ids of each of some parts of text."""

SPACE_MARK = "\u2581"
"""What SentencePiece turns a space into, before it looks for pieces."""
GENERATION = 1 << 15
"""Parts in the table before it ages: it holds at most twice as many, about 10 MB of usual text."""
LONGEST_KEPT = 256
"""Characters; a longer part hardly comes again."""
PIECE = 1 << 17
"""Characters after which a text is taken apart at the next line end, to be copied in pieces."""

_NEWLINE = re.compile(r"(?<=[^\n])\n")
_HIGH = "\x80-\U0010ffff"
_KINDS = (
    ("A-Za-z", "0-9", f"^A-Za-z0-9 \n{_HIGH}"),
    ("A-Za-z", f"^A-Za-z \n{_HIGH}"),
    (),
)
"""Kinds of characters to tell apart, the finest first. Those above 127 are of every kind: where one
follows, the rest of the word is not cut."""


def _pattern(kinds: Sequence[str]) -> re.Pattern[str]:
    """Matches the parts of text: spaces and what follows them up to another kind, as a piece."""
    words = [rf" *+[{kind}]++(?![{_HIGH}])" for kind in kinds]
    return re.compile("|".join([*words, r" *+[^ \n]+", " +", r"\n+"]))


def _cuts(kinds: Sequence[str]) -> re.Pattern[str]:
    """Matches the pairs of characters between which `_pattern` may end a part."""
    pairs = [f"[{one}][{other}]" for one in kinds for other in kinds if one != other]
    return re.compile("|".join([*pairs, r"[^ \n] ", r"[^\n]\n", r"\n[^\n]"]))


def part_kinds(
    model: SentencePieceModel, pieces: Sequence[str], in_text: Callable[[int], bool]
) -> int | None:
    """How finely any text can be cut, for `make_part_cache`; None where it cannot be.

    `pieces` are all of the model, with spaces or space marks; `in_text` says of the number of one
    whether text can be joined to it. Only options of the model are accepted under which its parts
    have been shown to be independent.
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
    texts = [piece.replace(SPACE_MARK, " ") for piece in pieces]
    for number, kinds in enumerate(_KINDS):
        crosses = _cuts(kinds).search
        if not any(crosses(text) and in_text(i) for i, text in enumerate(texts)):
            return number
    return None


class PartCache(Protocol):
    """Ids of parts of text, cut as finely as `kinds` says.

    Parts that have not come again for a generation are forgotten, so memory is bounded.
    """

    kinds: int

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after another (tokens,), of `token_dtype`, and tokens of each text
        (texts,)."""


def make_part_cache(
    kinds: int, encode_parts: EncodeParts, prefix: str, vocab_size: int
) -> PartCache:
    """A table that asks `encode_parts` for the ids of those parts that it does not hold.

    `prefix` is put before every text that is not empty. In C where the package was installed with a
    compiler, about five times as fast.
    """
    if _parts is None:
        return PythonPartCache(kinds, encode_parts, prefix, vocab_size)
    return CompiledPartCache(kinds, encode_parts, prefix, vocab_size)


def _prepared(text: str, prefix: str) -> Iterator[str]:
    """`prefix` and `text`, in pieces that end with parts: before the first of some newlines."""
    end = 0
    while end < len(text):
        cut = _NEWLINE.search(text, end + PIECE)
        start, end = end, cut.start() if cut else len(text)
        piece = text[start:end] if start else prefix + text[:end]
        # SentencePiece makes both the same symbol, so its ids are those of a space.
        yield piece.replace(SPACE_MARK, " ")


class CompiledPartCache:
    """The table of `_parts.c`: at most 2 · 32,768 parts, 5 MB."""

    def __init__(
        self,
        kinds: int,
        encode_parts: EncodeParts,
        prefix: str,
        vocab_size: int,
        **settings: int,
    ) -> None:
        assert _parts is not None
        patterns = [re.compile(f"[{kind}]") for kind in _KINDS[kinds]]
        kind_of = bytes(
            next((n for n, kind in enumerate(patterns) if kind.match(chr(byte))), 0)
            for byte in range(128)
        )
        self.dtype = np.dtype(token_dtype(vocab_size))
        self.table = _parts.Table(kind_of, self.dtype.itemsize, **settings)
        self.kinds, self.encode_parts, self.prefix = kinds, encode_parts, prefix

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `PartCache` says."""
        ids, ends = bytearray(), [0]
        for text in texts:
            for piece in _prepared(text, self.prefix):
                self.table.encode(piece, self.encode_parts, ids)
            ends.append(len(ids))
        return np.frombuffer(ids, self.dtype), np.diff(ends) // self.dtype.itemsize


class PythonPartCache(dict[str, bytes]):
    """The same in Python: ids as bytes by part."""

    def __init__(self, kinds: int, encode_parts: EncodeParts, prefix: str, vocab_size: int) -> None:
        super().__init__()
        self.dtype = np.dtype(token_dtype(vocab_size))
        self.kinds, self.encode_parts, self.prefix = kinds, encode_parts, prefix
        self._pattern = _pattern(_KINDS[kinds])
        self._older: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `PartCache` says."""
        ids, ends = bytearray(), [0]
        for text in texts:
            for piece in _prepared(text, self.prefix):
                ids += b"".join(map(self.__getitem__, self._pattern.findall(piece)))
            ends.append(len(ids))
        return np.frombuffer(ids, self.dtype), np.diff(ends) // self.dtype.itemsize

    def __missing__(self, part: str) -> bytes:
        if len(self) > GENERATION:
            self._older = dict(self)
            self.clear()
        ids = self._older.pop(part, None)
        if ids is None:
            ids = array(self.dtype.char, self.encode_parts([part])[0]).tobytes()
        if len(part) <= LONGEST_KEPT:
            self[part] = ids
        return ids

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
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from megatron_fastmix.corpus.sentencepiece_model import BPE, SentencePieceModel

SPACE_MARK = "\u2581"
"""What SentencePiece turns a space into, before it looks for pieces."""
GENERATION = 1 << 15
"""Parts in the table before it ages: it holds at most twice as many, about 10 MB of usual text."""
LONGEST_KEPT = 256
"""Characters; a longer part hardly comes again."""
LONG_TEXT = 1 << 20
"""Characters; the parts of a longer text are not all held in memory at once."""

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


def segment_pattern(model: SentencePieceModel, pieces: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern whose matches are the parts of any text; None where parts cannot be told apart.

    `pieces` are all that text can be joined to, with spaces or space marks. Only options of the
    model are accepted under which its parts have been shown to be independent.
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
    for kinds in _KINDS:
        if not any(map(_cuts(kinds).search, texts)):
            return _pattern(kinds)
    return None


class SegmentCache(dict[str, bytes]):
    """Ids (int32, as bytes) of parts of text; `encode_part` is asked for those it does not hold.

    Parts that have not come again for a generation are forgotten, so memory is bounded.
    """

    def __init__(
        self, pattern: re.Pattern[str], encode_part: Callable[[str], Iterable[int]], prefix: str
    ) -> None:
        super().__init__()
        self._pattern, self._encode_part, self._prefix = pattern, encode_part, prefix
        self._older: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after another (tokens,) int32, and tokens of each text (texts,).

        `prefix` is put before every text that is not empty.
        """
        found = []
        for text in texts:
            # SentencePiece makes both the same symbol, so its ids are those of a space.
            text = (self._prefix + text if text else text).replace(SPACE_MARK, " ")
            parts = self._pattern.findall(text) if len(text) < LONG_TEXT else self._each(text)
            found.append(b"".join(map(self.__getitem__, parts)))
        lengths = np.fromiter(map(len, found), np.int64, len(found)) // 4
        return np.frombuffer(b"".join(found), np.int32), lengths

    def _each(self, text: str) -> Iterator[str]:
        return (match.group() for match in self._pattern.finditer(text))

    def __missing__(self, part: str) -> bytes:
        if len(self) > GENERATION:
            self._older = dict(self)
            self.clear()
        ids = self._older.pop(part, None)
        if ids is None:
            ids = array("i", self._encode_part(part)).tobytes()
        if len(part) <= LONGEST_KEPT:
            self[part] = ids
        return ids

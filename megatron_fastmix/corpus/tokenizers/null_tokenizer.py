"""Data that is tokenized already."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from megatron_fastmix.corpus.tokenizers.tokenizer_interface import LocatedTokens, Span, Tokenizer
from megatron_fastmix.errors import DataError


class NullTokenizer(Tokenizer):
    """Megatron's `NullTokenizer`: text is numbers with spaces between, and the end token is the id
    after the last, so that a size is all it takes to read datasets of any tokenizer."""

    tokenizer_type = "NullTokenizer"

    def __init__(self, vocab_size: int) -> None:
        """`vocab_size` ids without the end token, as in Megatron's --vocab-size."""
        self._ids = vocab_size
        self.vocab_size = vocab_size + 1
        self.eod = vocab_size
        self.sha256 = hashlib.sha256(f"NullTokenizer {vocab_size}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        try:
            ids = [int(number) for number in text.split()]
        except ValueError:
            ids = [-1]
        if any(not 0 <= token < self._ids for token in ids):
            raise DataError(
                f"NullTokenizer: found the text {text[:40]!r}; it reads numbers from 0 to "
                f"{self._ids - 1} with spaces between, so name the tokenizer of the text"
            )
        return ids

    def encode_located(
        self, texts: Sequence[str], controls: Sequence[Sequence[Span]]
    ) -> LocatedTokens:
        found = []
        for text in texts:
            spans, at = [], 0
            for number in text.split():
                at = text.index(number, at)
                spans.append((at, at + len(number)))
                at += len(number)
            found.append((self.encode(text), np.array(spans)))
        return LocatedTokens.of(found)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

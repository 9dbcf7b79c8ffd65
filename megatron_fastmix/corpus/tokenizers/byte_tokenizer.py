"""UTF-8 bytes as tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from megatron_fastmix.corpus.tokenizers.tokenizer_interface import LocatedTokens, Span, Tokenizer


class ByteLevelTokenizer(Tokenizer):
    """UTF-8 bytes 0 to 255 as ids, special tokens above them.

    Named after Megatron-core's class, which gives text the same ids, but whose default special
    tokens are the bytes 0 and 1; here no special token can occur in text.
    """

    tokenizer_type = "ByteLevelTokenizer"
    eod = 256
    pad = 257
    vocab_size = 258
    sha256 = hashlib.sha256(b"ByteLevelTokenizer eod=256 pad=257").hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [text.encode("utf-8") for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.frombuffer(b"".join(encoded), np.uint8).astype(np.int32), lengths

    def encode_located(
        self, texts: Sequence[str], controls: Sequence[Sequence[Span]]
    ) -> LocatedTokens:
        ids, lengths = self.encode_flat(texts)
        starts = np.concatenate([np.zeros(0, np.int64), *map(character_of_byte, texts)])
        return LocatedTokens(ids=ids, lengths=lengths, starts=starts, stops=starts + 1)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")


def character_of_byte(text: str) -> np.ndarray:
    """Index in `text` of the character that each of its UTF-8 bytes is from, (bytes,) int64."""
    if text.isascii():
        return np.arange(len(text))
    code = np.frombuffer(text.encode("utf-8"), np.uint8)
    return np.cumsum((code & 0xC0) != 0x80) - 1

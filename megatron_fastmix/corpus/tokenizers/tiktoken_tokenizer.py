"""Megatron's `TikTokenizer`: a vocabulary of byte pairs in JSON, run by the package `tiktoken`."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_fastmix.corpus.tokenizers.byte_tokenizer import character_of_byte
from megatron_fastmix.corpus.tokenizers.tokenizer_interface import LocatedTokens, Span, Tokenizer
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.extras import needs_package
from megatron_fastmix.text_files import read_json

PATTERNS = {
    "v1": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "v2": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""How text is cut before pairs are joined, by Megatron's --tiktoken-pattern."""
DEFAULT_SIZE = 1 << 17
"""Megatron's vocabulary size where none is given, special tokens included."""
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
"""The first ids; the ids after them up to the number of special tokens are fillers."""


class TikTokenizer(Tokenizer):
    """Ids equal those of `TikTokenTokenizer.text_to_ids` in `megatron.core.tokenizers`: special
    tokens first, then the pieces of the file by rank. Its end token is `</s>`."""

    tokenizer_type = "TikTokenizer"

    def __init__(
        self,
        path: Path,
        *,
        vocab_size: int | None = None,
        pattern: str = "v2",
        num_special_tokens: int = 1000,
        special_tokens: Sequence[str] | None = None,
    ) -> None:
        special = tuple(special_tokens or SPECIAL_TOKENS)
        size = vocab_size or DEFAULT_SIZE
        missing = [name for name in SPECIAL_TOKENS if name not in special]
        if missing or len(set(special)) < len(special):
            raise ConfigError(
                f"tiktoken_special_tokens: found {', '.join(special)}; name each once, and "
                f"{', '.join(SPECIAL_TOKENS)} among them"
            )
        if not len(special) <= num_special_tokens < size:
            raise ConfigError(
                f"tiktoken_num_special_tokens: found {num_special_tokens}; use at least "
                f"{len(special)} and fewer than the vocabulary size {size}"
            )
        fillers = [f"<SPECIAL_{i}>" for i in range(len(special), num_special_tokens)]
        self._special = {name: i for i, name in enumerate([*special, *fillers])}
        self._pieces = _read_pieces(path, size - num_special_tokens)
        self._pattern = pattern
        self.vocab_size = size
        self.bos, self.eod = self._special["<s>"], self._special["</s>"]
        self.pad = self._special["<pad>"]
        identity = hashlib.sha256(f"{pattern} {list(self._special)}".encode())
        for piece in self._pieces:
            identity.update(len(piece).to_bytes(4, "little") + piece)
        self.sha256 = identity.hexdigest()
        self._encoding  # noqa: B018  made here, so that a wrong file is found

    @cached_property
    def _encoding(self) -> Any:
        with needs_package("tiktoken", "TikTokenizer"):
            import tiktoken
        first = len(self._special)
        return tiktoken.Encoding(
            name="megatron",
            pat_str=PATTERNS[self._pattern],
            mergeable_ranks={piece: first + rank for rank, piece in enumerate(self._pieces)},
            special_tokens=self._special,
        )

    @cached_property
    def _bytes_of_id(self) -> np.ndarray:
        first = np.zeros(len(self._special), np.int64)
        return np.concatenate([first, np.array([len(piece) for piece in self._pieces])])

    @property
    def control_tokens(self) -> Mapping[str, int]:
        return self._special

    @property
    def template_tokens(self) -> dict[str, str]:
        return {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

    def has_token(self, text: str) -> bool:
        return text in self._special

    def show(self, token: int) -> str | None:
        return next((n for n, i in self._special.items() if i == token), super().show(token))

    def encode(self, text: str) -> list[int]:
        return list(self._encoding.encode(text, allowed_special="all"))

    def encode_located(
        self, texts: Sequence[str], controls: Sequence[Sequence[Span]]
    ) -> LocatedTokens:
        return LocatedTokens.of(
            [self._locate(text, spans) for text, spans in zip(texts, controls, strict=True)]
        )

    def _locate(self, text: str, spans: Sequence[Span]) -> tuple[list[int], np.ndarray]:
        """Special tokens part a text before pairs are joined, so that its parts stand alone."""
        ids: list[int] = []
        places = [np.zeros((0, 2), np.int64)]
        done = 0
        for start, stop in [*spans, (len(text), len(text))]:
            part = text[done:start]
            found = self._encoding.encode_ordinary(part)
            ends = np.cumsum(self._bytes_of_id[found])
            at = np.append(character_of_byte(part), len(part))
            first, last = at[ends - self._bytes_of_id[found]], at[ends - 1] + 1
            places.append(np.stack([first, last], axis=1) + done)
            ids += found
            if stop > start:
                ids.append(self._special[text[start:stop]])
                places.append(np.array([[start, stop]]))
            done = stop
        return ids, np.concatenate(places)

    def decode(self, ids: Sequence[int]) -> str:
        first = len(self._special)
        pieces = [self._pieces[i - first] for i in ids if first <= i < first + len(self._pieces)]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in {"_encoding", "_bytes_of_id"}}


def _read_pieces(path: Path, count: int) -> list[bytes]:
    """The first `count` pieces of a file of `[{rank, token_bytes, token_str}, ...]`."""
    fix = "give a vocabulary of TikTokenizer"
    values = read_json(path, "the tokenizer", fix=fix)
    if not isinstance(values, list):
        raise DataError(f"{path}: expected a JSON list, found {type(values).__name__}; {fix}")
    if len(values) < count:
        raise DataError(
            f"{path}: holds {len(values)} pieces, the vocabulary size asks for {count}; set "
            "tokenizer.vocab_size to the number of pieces and special tokens"
        )
    pieces = []
    for rank, value in enumerate(values[:count]):
        try:
            piece = base64.b64decode(value["token_bytes"], validate=True)
            good = value["rank"] == rank and bool(piece)
        except (TypeError, KeyError, ValueError):
            good = False
        if not good or (rank < 256 and piece != bytes([rank])):
            raise DataError(f"{path}: entry {rank + 1} is not the piece of rank {rank}; {fix}")
        pieces.append(piece)
    if len(set(pieces)) < len(pieces) or count < 256:
        raise DataError(f"{path}: a piece occurs twice, or bytes have none; {fix}")
    return pieces

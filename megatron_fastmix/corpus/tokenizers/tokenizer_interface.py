"""The one interface of tokenizers, which the whole package uses."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

NO_TOKEN = -1
"""The id of a special token that a tokenizer does not have; Megatron's own value for no pad."""

Span = tuple[int, int]
"""Characters [start, stop) of a text."""


@dataclass(frozen=True, kw_only=True)
class LocatedTokens:
    """Tokens of several texts one after another, and the characters that each is from."""

    ids: np.ndarray
    """(tokens,) int32."""
    lengths: np.ndarray
    """(texts,) int64, tokens of each text."""
    starts: np.ndarray
    """(tokens,) int64, first character of the token in its text."""
    stops: np.ndarray
    """(tokens,) int64, the character after its last. Equal to the start where a token has no
    character to itself: a mark that the tokenizer adds, or one of the first bytes of a character
    whose last byte is the next token's."""

    @classmethod
    def of(cls, found: Sequence[tuple[Sequence[int], Any]]) -> LocatedTokens:
        """From (ids, spans of characters) of each text."""
        lengths = np.fromiter((len(ids) for ids, _ in found), np.int64, len(found))
        total = int(lengths.sum())
        ids = np.fromiter(chain.from_iterable(ids for ids, _ in found), np.int32, total)
        spans = [np.asarray(spans, np.int64).reshape(-1, 2) for _, spans in found]
        ends = np.concatenate([np.zeros((0, 2), np.int64), *spans])
        return cls(ids=ids, lengths=lengths, starts=ends[:, 0], stops=ends[:, 1])


class Tokenizer(ABC):
    """Text to token ids in [0, vocab_size) and back.

    `eod` ends a document; `eos` is the same id. `pad` is `NO_TOKEN` unless the tokenizer has a
    padding token of its own: Megatron takes every label that equals `pad` out of the loss, so an
    id that also occurs in text must never be returned.
    """

    tokenizer_type: str
    vocab_size: int
    """Number of ids; the embedding of a model needs at least as many rows."""
    eod: int
    bos: int = NO_TOKEN
    pad: int = NO_TOKEN
    missing_end: str = ""
    """Where `eod` is `NO_TOKEN`, why, and what to do: `with_end` must then name one."""
    sha256: str
    """Identity of the tokenizer's content, wherever its file lies."""
    notes: tuple[str, ...] = ()
    """What users should be told of its end token, such as that it was guessed."""
    encoding_notes: tuple[str, ...] = ()
    """What users should be told of how it encodes, such as settings that it does not follow."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without `bos` and `eod`."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens have none."""

    @abstractmethod
    def encode_located(
        self, texts: Sequence[str], controls: Sequence[Sequence[Span]]
    ) -> LocatedTokens:
        """`encode` of each text as a whole, with where each token is from.

        `controls` says for each text where a chat template wrote one of `control_tokens`: there,
        and nowhere else, its characters become that token.
        """

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Tokens that no text becomes, but that a chat template may write, by how it writes them.

        Empty where `encode` itself finds such tokens in the text, or there are none.
        """
        return {}

    @property
    def template_tokens(self) -> dict[str, str]:
        """How chat templates write `bos_token`, `eos_token` and the like, by those names."""
        return {}

    def with_end(self, eod: int) -> None:
        """Takes `eod` for the end token, as data has that was written otherwise than by this
        class; an id past the tokenizer's makes the vocabulary larger."""
        self.notes = ()
        if eod == self.eod:
            return
        self.eod = eod
        self.vocab_size = max(self.vocab_size, eod + 1)
        self.pad = NO_TOKEN if self.pad == eod else self.pad
        self.sha256 = hashlib.sha256(f"{self.sha256} eod={eod}".encode()).hexdigest()

    def has_token(self, text: str) -> bool:
        """Whether `text` is one token of the vocabulary."""
        return False

    def show(self, token: int) -> str | None:
        """How a special token is written; None for one that stands for text."""
        names = {self.eod: "<eod>", self.bos: "<bos>", self.pad: "<pad>"}
        return None if token == NO_TOKEN else names.get(token)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one after another (tokens,), of any integer type, and tokens of each
        (texts,) int64."""
        ids = self.encode_batch(texts)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths

    def prepare(self) -> None:  # noqa: B027  most have nothing to make
        """Makes what the first `encode_flat` would make; forked processes then share it."""

    def tokenize(self, text: str) -> list[int]:
        """`encode` under Megatron's name."""
        return self.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """`decode` under Megatron's name."""
        return self.decode(ids)

    @property
    def eos(self) -> int:
        return self.eod

    @property
    def special_tokens_dict(self) -> dict[str, int]:
        """Ids of the special tokens that exist, by name; Megatron compares `pad` with them."""
        ids = {"bos_token": self.bos, "eos_token": self.eod, "pad_token": self.pad}
        return {name: token for name, token in ids.items() if token != NO_TOKEN}

    @property
    def unique_identifiers(self) -> OrderedDict[str, Any]:
        """What enters the names of Megatron's cached indices: content, not paths."""
        return OrderedDict(
            tokenizer_type=self.tokenizer_type, vocab_size=self.vocab_size, sha256=self.sha256
        )

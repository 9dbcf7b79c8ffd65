"""Tokenizers by Megatron's names, behind the one interface that the whole package uses.

`load_tokenizer` takes the values of Megatron's `--tokenizer-type` and `--tokenizer-model`. A
loaded tokenizer serves both preprocessing (`encode`, `decode`) and Megatron's datasets (`eod`,
`pad`, `vocab_size`, `special_tokens_dict`, `unique_identifiers`); it can be pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from megatron_fastmix.corpus.segment_cache import SegmentCache, make_segment_cache, segment_kinds
from megatron_fastmix.corpus.sentencepiece_model import parse_model, without_dummy_prefix
from megatron_fastmix.errors import ConfigError, DataError

NO_TOKEN = -1
"""The id of a special token that a tokenizer does not have; Megatron's own value for no pad."""


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
    sha256: str
    """Identity of the tokenizer's content, wherever its file lies."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without `bos` and `eod`."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens have none."""

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


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; ids equal those of `SentencePieceProcessor.encode`."""

    tokenizer_type = "SentencePieceTokenizer"

    def __init__(self, model: bytes, where: str = "SentencePiece model") -> None:
        self._model, self._where = model, where
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._load()

    def _load(self) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._processor = SentencePieceProcessor(model_proto=self._model)
        except RuntimeError as error:
            raise DataError(f"{self._where}: not a SentencePiece model: {error}") from None
        self.vocab_size = self._processor.get_piece_size()
        self.eod = self._processor.eos_id()
        self.bos = self._processor.bos_id()
        if self.eod < 0:
            raise DataError(
                f"{self._where}: the model has no end-of-sentence piece, which must end documents; "
                "train it with eos_id set"
            )
        pad = self._processor.pad_id()
        self.pad = pad if pad not in {self.eod, self.bos, self._processor.unk_id()} else NO_TOKEN

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        # One thread: parallelism is a matter of worker processes.
        return self._processor.encode(list(texts), num_threads=1)

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return super().encode_flat(texts) if self._cache is None else self._cache.encode(texts)

    def prepare(self) -> None:
        self._cache  # noqa: B018  made at its first use

    @cached_property
    def _cache(self) -> SegmentCache | None:
        """The table of parts of text, where the model permits one."""
        from sentencepiece import SentencePieceProcessor

        model, whole = parse_model(self._model), self._processor
        # Unused pieces count: text is joined to them too, and taken apart afterwards.
        never = (whole.is_control, whole.is_byte, whole.is_unknown)
        pieces = whole.id_to_piece(list(range(self.vocab_size)))
        kinds = segment_kinds(model, pieces, lambda i: not any(test(i) for test in never))
        if kinds is None:
            return None
        bare = SentencePieceProcessor(model_proto=without_dummy_prefix(self._model))

        def encode_parts(parts: list[str]) -> list[list[int]]:
            return bare.encode(parts, num_threads=1)

        return make_segment_cache(
            kinds, encode_parts, " " * model.add_dummy_prefix, self.vocab_size
        )

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(token) for token in ids])

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model, "_where": self._where, "sha256": self.sha256}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` through the `tokenizers` package.

    Special tokens are those of `tokenizer_config.json` beside it, or else well-known names.
    """

    tokenizer_type = "HuggingFaceTokenizer"
    EOD_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "[SEP]")
    BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "[CLS]")
    PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")

    def __init__(
        self, content: str, settings: dict[str, Any], where: str = "tokenizer.json"
    ) -> None:
        self._content, self._settings, self._where = content, settings, where
        identity = content + json.dumps(settings, sort_keys=True)
        self.sha256 = hashlib.sha256(identity.encode()).hexdigest()
        self._load()

    def _load(self) -> None:
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError:
            raise ConfigError(
                "HuggingFaceTokenizer needs the package `tokenizers`; "
                "install it with `pip install megatron-fastmix[corpus]`"
            ) from None
        try:
            self._backend = Backend.from_str(self._content)
        except Exception as error:  # the package raises plain Exception
            raise DataError(f"{self._where}: not a tokenizer.json: {error}") from None
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size = self._backend.get_vocab_size(with_added_tokens=True)
        self.eod = self._special("eos_token", self.EOD_NAMES)
        self.bos = self._special("bos_token", self.BOS_NAMES)
        pad = self._special("pad_token", self.PAD_NAMES)
        self.pad = pad if pad not in {self.eod, self.bos} else NO_TOKEN
        if self.eod == NO_TOKEN:
            raise DataError(
                f"{self._where}: no end-of-document token found; name it as `eos_token` in "
                "tokenizer_config.json beside the file"
            )
        # Ids may have gaps: the size must exceed the largest.
        self.vocab_size = max(self.vocab_size, 1 + max(self._backend.get_vocab().values()))

    def _special(self, key: str, names: Sequence[str]) -> int:
        named = self._settings.get(key)
        candidates = names if named is None else (named,)
        for name in candidates:
            token = self._backend.token_to_id(name)
            if token is not None:
                return int(token)
        return NO_TOKEN

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode([int(token) for token in ids])

    def __getstate__(self) -> dict[str, Any]:
        return {
            "_content": self._content,
            "_settings": self._settings,
            "_where": self._where,
            "sha256": self.sha256,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()


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

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")


TOKENIZER_TYPES = ("SentencePieceTokenizer", "HuggingFaceTokenizer", "ByteLevelTokenizer")


_FILES_OF_FOLDER = {
    "SentencePieceTokenizer": ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    "HuggingFaceTokenizer": ("tokenizer.json",),
}
"""Names under which a model's folder keeps its tokenizer, the usual one first."""


def tokenizer_file(tokenizer_type: str, tokenizer_model: str) -> Path:
    """The file that a tokenizer is read from: `tokenizer_model`, or the one in that folder."""
    path = Path(tokenizer_model)
    names = _FILES_OF_FOLDER.get(tokenizer_type, ())
    if not names or not path.is_dir():
        return path
    return next((path / name for name in names if (path / name).exists()), path / names[0])


def tokenizer_files(path: str) -> list[str]:
    """Every file that may be read of a tokenizer or a chat template at `path`."""
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    beside = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
    names = [name for names in _FILES_OF_FOLDER.values() for name in names] + list(beside)
    found = [str(folder / name) for name in names if (folder / name).is_file()]
    return found if os.path.isdir(path) else [path, *found]


def load_tokenizer(tokenizer_type: str, tokenizer_model: str | None = None) -> Tokenizer:
    """Loads a tokenizer by Megatron's `--tokenizer-type` and `--tokenizer-model`.

    `tokenizer_model` is the `.model` file of SentencePiece, a `tokenizer.json` for Hugging Face, or
    the folder that holds either, and nothing for bytes. Raises `ConfigError` for an unknown type or
    a missing model argument, `DataError` for a file that cannot be read as one.
    """
    if tokenizer_type not in TOKENIZER_TYPES:
        raise ConfigError(
            f"tokenizer_type: found {tokenizer_type!r}; choose one of {', '.join(TOKENIZER_TYPES)}"
        )
    if tokenizer_type == ByteLevelTokenizer.tokenizer_type:
        return ByteLevelTokenizer()
    if not tokenizer_model:
        raise ConfigError(f"tokenizer_model: {tokenizer_type} needs the path of its file")
    path = tokenizer_file(tokenizer_type, tokenizer_model)
    if tokenizer_type == SentencePieceTokenizer.tokenizer_type:
        return SentencePieceTokenizer(_read_bytes(path), str(path))
    try:
        content = _read_bytes(path).decode("utf-8")
        settings = _read_settings(path.with_name("tokenizer_config.json"))
    except ValueError as error:
        raise DataError(f"{path}: not a tokenizer.json: {error}") from None
    return HuggingFaceTokenizer(content, settings, str(path))


def _read_settings(path: Path) -> dict[str, str]:
    """Special tokens by key from `tokenizer_config.json`; empty without such a file."""
    if not path.exists():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))
    settings = {}
    for key in ("bos_token", "eos_token", "pad_token"):
        value = values.get(key)
        if isinstance(value, dict):  # a serialised AddedToken
            value = value.get("content")
        if isinstance(value, str):
            settings[key] = value
    return settings


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
    if not content:
        raise DataError(f"{path}: the tokenizer file is empty; train or copy it again")
    return content

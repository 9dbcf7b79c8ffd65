"""Tokenizers by Megatron's names, behind the one interface that the whole package uses.

`load_tokenizer` takes the values of Megatron's `--tokenizer-type` and `--tokenizer-model`. A
loaded tokenizer serves both preprocessing (`encode`, `decode`) and Megatron's datasets (`eod`,
`pad`, `vocab_size`, `special_tokens_dict`, `unique_identifiers`); it can be pickled.
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_fastmix.corpus.byte_tokenizer import ByteLevelTokenizer
from megatron_fastmix.corpus.huggingface_tokenizer import HuggingFaceTokenizer
from megatron_fastmix.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_fastmix.corpus.tokenizer_files import ID_FILES, NAMING_FILES, read_content
from megatron_fastmix.corpus.tokenizer_interface import NO_TOKEN, Tokenizer
from megatron_fastmix.errors import ConfigError, DataError

__all__ = [
    "NO_TOKEN",
    "TOKENIZER_TYPES",
    "ByteLevelTokenizer",
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "tokenizer_file",
    "tokenizer_files",
]

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
    beside = (*NAMING_FILES, *ID_FILES, "chat_template.jinja", "chat_template.json")
    names = [*(name for names in _FILES_OF_FOLDER.values() for name in names), *beside]
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
        return SentencePieceTokenizer(read_content(path), str(path))
    try:
        content = read_content(path).decode("utf-8")
    except ValueError as error:
        raise DataError(f"{path}: not a tokenizer.json: {error}") from None
    return HuggingFaceTokenizer(content, path)

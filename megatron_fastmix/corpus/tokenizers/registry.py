"""Tokenizers by Megatron's names, behind the one interface that the whole package uses.

`load_tokenizer` takes the values of Megatron's `--tokenizer-type` and `--tokenizer-model`. A
loaded tokenizer serves both preprocessing (`encode`, `decode`) and Megatron's datasets (`eod`,
`pad`, `vocab_size`, `special_tokens_dict`, `unique_identifiers`); it can be pickled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from megatron_fastmix.corpus.tokenizers.added_tokens import ADDED_FILE, foreign_to_model, other_end
from megatron_fastmix.corpus.tokenizers.byte_tokenizer import ByteLevelTokenizer
from megatron_fastmix.corpus.tokenizers.gpt2_tokenizer import GPT2BPETokenizer
from megatron_fastmix.corpus.tokenizers.hub_names import local_file
from megatron_fastmix.corpus.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer
from megatron_fastmix.corpus.tokenizers.null_tokenizer import NullTokenizer
from megatron_fastmix.corpus.tokenizers.sentencepiece_tokenizer import (
    GPTSentencePieceTokenizer,
    Llama2Tokenizer,
    SentencePieceTokenizer,
)
from megatron_fastmix.corpus.tokenizers.tiktoken_tokenizer import TikTokenizer
from megatron_fastmix.corpus.tokenizers.tokenizer_files import (
    ID_FILES,
    NAMING_FILES,
    more_templates,
    read_content,
)
from megatron_fastmix.corpus.tokenizers.tokenizer_interface import NO_TOKEN, Tokenizer
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.text_files import decode_text
from megatron_fastmix.text_list import listed

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

_SENTENCEPIECE: dict[str, type[SentencePieceTokenizer]] = {
    tokenizer.tokenizer_type: tokenizer
    for tokenizer in (SentencePieceTokenizer, GPTSentencePieceTokenizer, Llama2Tokenizer)
}
TOKENIZER_TYPES = (
    *_SENTENCEPIECE,
    HuggingFaceTokenizer.tokenizer_type,
    GPT2BPETokenizer.tokenizer_type,
    TikTokenizer.tokenizer_type,
    ByteLevelTokenizer.tokenizer_type,
    NullTokenizer.tokenizer_type,
)


_FILES_OF_FOLDER = {
    **dict.fromkeys(_SENTENCEPIECE, ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")),
    "HuggingFaceTokenizer": ("tokenizer.json",),
    "GPT2BPETokenizer": ("vocab.json", "gpt2-vocab.json"),
    "TikTokenizer": ("vocab.json", "tokenizer.vocab.json"),
}
"""Names under which a model's folder keeps its tokenizer, the usual one first."""


def tokenizer_file(tokenizer_type: str, tokenizer_model: str) -> Path:
    """The file that a tokenizer is read from: `tokenizer_model`, the one in that folder, or that of
    the model of this name in the Hugging Face Hub's cache. Raises `ConfigError` for a name alone
    and for a folder without one.
    """
    names = _FILES_OF_FOLDER.get(tokenizer_type, ())
    path = local_file(tokenizer_model, names, "tokenizer_model")
    if not names or not path.is_dir():
        return path
    found = [path / name for name in names if (path / name).exists()]
    if not found and tokenizer_type in _SENTENCEPIECE:
        found = sorted(path.glob("*.model"))
        if len(found) > 1:
            raise ConfigError(
                f"tokenizer_model: {path} holds several models, {listed([f.name for f in found])}; "
                "give the path of one"
            )
    if not found:
        raise ConfigError(
            f"tokenizer_model: {path} holds none of {', '.join(names)}; {_hint(path)}"
        )
    return found[0]


def _hint(folder: Path) -> str:
    """What to do about a folder without the tokenizer's file."""
    for tokenizer_type, names in _FILES_OF_FOLDER.items():
        here = next((name for name in names if (folder / name).exists()), None)
        if here and tokenizer_type != TikTokenizer.tokenizer_type:
            return f"it holds {here}: use the type {tokenizer_type}, or copy the file"
    for depth in ("*", "*/*"):  # two in a NeMo 2 checkpoint and in the hub's cache
        for name in (name for names in _FILES_OF_FOLDER.values() for name in names):
            below = next(iter(sorted(folder.glob(f"{depth}/{name}"))), None)
            if below:
                return f"give the folder {below.parent}"
    there = sorted(file.name for file in folder.iterdir())
    return f"it holds {listed(there, 5) or 'nothing'}: give the folder or the file of the tokenizer"


def tokenizer_files(path: str) -> list[str]:
    """Every file that may be read of a tokenizer or a chat template at `path`."""
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    beside = (*NAMING_FILES, ADDED_FILE, *ID_FILES, "chat_template.jinja", "chat_template.json")
    names = [*(name for names in _FILES_OF_FOLDER.values() for name in names), *beside]
    found = [str(folder / name) for name in names if (folder / name).is_file()]
    found += map(str, more_templates(folder))
    return found if os.path.isdir(path) else [path, *found]


def load_tokenizer(
    tokenizer_type: str,
    tokenizer_model: str | None = None,
    *,
    vocab_file: str | None = None,
    merge_file: str | None = None,
    vocab_size: int | None = None,
    eod: int | None = None,
    tiktoken_pattern: str = "v2",
    tiktoken_num_special_tokens: int = 1000,
    tiktoken_special_tokens: Sequence[str] | None = None,
) -> Tokenizer:
    """Loads a tokenizer by the values of Megatron's flags; `TokenizerConfig` explains them.

    `tokenizer_model` is the `.model` file of SentencePiece, a `tokenizer.json` for Hugging Face,
    the vocabulary of tiktoken, or the folder that holds one of them, and nothing for bytes. Raises
    `ConfigError` for an unknown type or a missing argument, `DataError` for a file that cannot be
    read as one.
    """
    if tokenizer_type not in TOKENIZER_TYPES:
        raise ConfigError(
            f"tokenizer_type: found {tokenizer_type!r}; choose one of {', '.join(TOKENIZER_TYPES)}"
        )
    tokenizer: Tokenizer
    if tokenizer_type == ByteLevelTokenizer.tokenizer_type:
        tokenizer = ByteLevelTokenizer()
    elif tokenizer_type == NullTokenizer.tokenizer_type:
        if vocab_size is None:
            raise ConfigError("vocab_size: NullTokenizer needs the number of ids (--vocab-size)")
        tokenizer = NullTokenizer(vocab_size)
    elif tokenizer_type == GPT2BPETokenizer.tokenizer_type and vocab_file and merge_file:
        tokenizer = GPT2BPETokenizer(Path(vocab_file), Path(merge_file))
        _compare(tokenizer, Path(vocab_file))
    elif not tokenizer_model:
        more = " or vocab_file and merge_file" * (tokenizer_type == GPT2BPETokenizer.tokenizer_type)
        raise ConfigError(f"tokenizer_model: {tokenizer_type} needs the path of its file{more}")
    else:
        path = tokenizer_file(tokenizer_type, tokenizer_model)
        if tokenizer_type in _SENTENCEPIECE:
            tokenizer = _SENTENCEPIECE[tokenizer_type](read_content(path), str(path))
            _compare(tokenizer, path)
        elif tokenizer_type == GPT2BPETokenizer.tokenizer_type:
            merges = path.with_name(path.name.replace("vocab.json", "merges.txt"))
            tokenizer = GPT2BPETokenizer(path, merges)
            _compare(tokenizer, path)
        elif tokenizer_type == TikTokenizer.tokenizer_type:
            tokenizer = TikTokenizer(
                path,
                vocab_size=vocab_size,
                pattern=tiktoken_pattern,
                num_special_tokens=tiktoken_num_special_tokens,
                special_tokens=tiktoken_special_tokens,
            )
        else:
            tokenizer = _huggingface(path)
    if eod is not None:
        tokenizer.with_end(eod)
    if tokenizer.eod == NO_TOKEN:
        raise DataError(tokenizer.missing_end)
    return tokenizer


def _compare(tokenizer: Tokenizer, path: Path) -> None:
    """Has the tokenizer, which is the file at `path` alone, tell what those beside it say else."""
    tokenizer.encoding_notes = tuple(foreign_to_model(path, tokenizer))
    tokenizer.notes = tuple(other_end(path, tokenizer))


def _huggingface(path: Path) -> HuggingFaceTokenizer:
    try:
        content = decode_text(read_content(path))
    except ValueError as error:
        raise DataError(f"{path}: not a tokenizer.json: {error}") from None
    return HuggingFaceTokenizer(content, path)

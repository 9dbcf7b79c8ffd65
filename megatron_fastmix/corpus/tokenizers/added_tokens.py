"""Tokens that files beside a `tokenizer.json` add to it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_fastmix.corpus.tokenizers.tokenizer_files import (
    CONFIG_FILE,
    naming_files,
    read_settings,
    special_tokens,
    token_flags,
    token_text,
)
from megatron_fastmix.corpus.tokenizers.tokenizer_interface import Tokenizer
from megatron_fastmix.errors import DataError
from megatron_fastmix.text_list import listed

ADDED_FILE = "added_tokens.json"
"""Old models' file of added tokens, by text with their ids."""
_LISTS = ("extra_special_tokens", "additional_special_tokens")
_FIRST_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""The names whose tokens `transformers` adds first, in its order."""
_NUMBER = re.compile("[0-9]{1,10}")


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token as a file states it."""

    text: str
    file: Path
    flags: Mapping[str, bool]
    """How it is found in text, by the names of `tokenizers.AddedToken`."""
    id: int | None = None
    """The id that the file says it has, where it does."""
    name: str | None = None
    """Such as `eos_token`, where the file names it so."""


def stated_tokens(folder: Path) -> list[AddedToken]:
    """The tokens that the files in `folder` state, in the order in which `transformers` adds those
    that tokenizer.json does not have. Raises `DataError` for a damaged file."""
    config, files = folder / CONFIG_FILE, naming_files(folder)
    decoder = read_settings(config).get("added_tokens_decoder") if config in files else None
    if decoder is not None:  # then transformers reads no other file
        files = [config]
    named = [*_named(folder, files)]
    listed = [token for path in files for token in _listed(path)]
    special = {token.text for token in (*named, *listed)}
    numbered: list[AddedToken] = []
    if decoder is not None:
        numbered = [*_of_decoder(decoder, config, {token.text for token in named})]
    elif (folder / ADDED_FILE).exists():
        numbered = [*_of_added_file(folder / ADDED_FILE, special)]
    return [*sorted(numbered, key=lambda token: token.id or 0), *named, *listed]


def _of_decoder(value: Any, path: Path, named: set[str]) -> Iterator[AddedToken]:
    """Those of `added_tokens_decoder`: objects by id."""
    if not isinstance(value, dict):
        raise DataError(
            f"{path}: added_tokens_decoder is {value!r:.60}, expected an object; copy the file "
            "again"
        )
    for number, token in value.items():
        text = token_text(token, "added_tokens_decoder", path)
        if not isinstance(token, dict) or text is None or not _NUMBER.fullmatch(number):
            raise DataError(
                f"{path}: added_tokens_decoder has {number!r:.20}: {token!r:.60}, expected an id "
                "with an object that has the token's text as `content`; copy the file again"
            )
        flags = token_flags(token)
        flags["special"] = flags.get("special", False) or text in named
        yield AddedToken(text=text, file=path, flags=flags, id=int(number))


def _of_added_file(path: Path, special: set[str]) -> Iterator[AddedToken]:
    for text, number in read_settings(path).items():
        if type(number) is not int or number < 0 or not text:
            raise DataError(
                f"{path}: has {text!r:.40}: {number!r:.40}, expected a token's text with its id; "
                "copy the file again"
            )
        flags = {"special": text in special, "normalized": text not in special}
        yield AddedToken(text=text, file=path, flags=flags, id=number)


def _named(folder: Path, files: list[Path]) -> Iterator[AddedToken]:
    """The tokens that `files` name, such as `eos_token`."""
    found = {name: token for name, token in special_tokens(folder).items() if token.file in files}
    order = [name for name in _FIRST_NAMES if name in found]
    for name in dict.fromkeys([*order, *found]):
        token = found[name]
        flags = {**token.flags, "special": True}
        yield AddedToken(text=token.text, file=token.file, flags=flags, name=name)


def _listed(path: Path) -> Iterator[AddedToken]:
    """The special tokens of a list, which have no names."""
    settings = read_settings(path)
    key = next((key for key in _LISTS if settings.get(key)), _LISTS[0])
    value = settings.get(key) or ()
    if isinstance(value, dict):  # with names
        return
    if isinstance(value, str | int | float):
        raise DataError(f"{path}: {key} is {value!r:.60}, expected a list; correct the file")
    for token in value:
        text = token_text(token, key, path)
        if text is None:
            raise DataError(
                f"{path}: {key} has {token!r:.60}, which is no text of a token; correct the file"
            )
        yield AddedToken(text=text, file=path, flags=token_flags(token) | {"special": True})


def ignored_settings(folder: Path, content: str) -> list[str]:
    """What users should be told of settings beside tokenizer.json, whose text is `content`, by
    which `transformers` may make other ids of a text."""
    path = folder / CONFIG_FILE
    settings = read_settings(path) if path.exists() else {}
    notes = []
    if settings.get("split_special_tokens") is True:
        notes.append(
            f"{path}: split_special_tokens is true, by which transformers takes special tokens in "
            "a text apart; here they stay whole"
        )
    wanted = settings.get("add_prefix_space")
    spaced = _adds_space(content) if isinstance(wanted, bool) else None
    if spaced is not None and wanted != spaced:
        notes.append(
            f"{path}: add_prefix_space is {json.dumps(wanted)}, but tokenizer.json has "
            f"{json.dumps(spaced)}, which is taken; transformers may take the other and make other "
            "ids; make them agree"
        )
    return notes


def _adds_space(content: str) -> bool | None:
    """Whether a tokenizer of bytes puts a space before a text; None for other tokenizers."""
    step = json.loads(content).get("pre_tokenizer") or {}
    for each in step.get("pretokenizers", [step]):
        if each.get("type") == "ByteLevel":
            return bool(each.get("add_prefix_space"))
    return None


def other_end(path: Path, tokenizer: Tokenizer) -> list[str]:
    """What users should be told where a file beside the one at `path` names another token of
    `tokenizer`, which is that file alone, as the end token than ends documents."""
    try:
        named = special_tokens(path.parent).get("eos_token")
    except DataError:  # in a file that nothing here is read from
        return []
    own = tokenizer.show(tokenizer.eod)
    if named is None or named.text == own or not tokenizer.has_token(named.text):
        return []
    return [
        f"{named.file}: eos_token is {named.text!r}, but documents end with {own!r} (id "
        f"{tokenizer.eod}), the end token of {path.name}, as with Megatron; for the other give its "
        "id as eod (--eod)"
    ]


def foreign_to_model(path: Path, tokenizer: Tokenizer) -> list[str]:
    """What users should be told of tokens that the files beside the one at `path` state, and that
    `tokenizer`, which is that file alone, does not have."""
    try:
        stated = stated_tokens(path.parent)
    except DataError:  # in a file that nothing here is read from
        return []
    notes = []
    for file in dict.fromkeys(token.file for token in stated):
        texts = (token.text for token in stated if token.file == file)
        missing = [text for text in dict.fromkeys(texts) if not tokenizer.has_token(text)]
        if missing:
            notes.append(
                f"{file}: {listed([repr(text) for text in missing], 5)}: no piece of {path.name}, "
                "so that it is encoded as text, and ends no document; for the ids of transformers "
                "use the type HuggingFaceTokenizer with the model's tokenizer.json"
            )
    return notes

"""The files beside a tokenizer: which of its tokens they name as special."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_fastmix.errors import DataError
from megatron_fastmix.text_files import read_bytes, read_json_object

CONFIG_FILE = "tokenizer_config.json"
NAMING_FILES = (CONFIG_FILE, "special_tokens_map.json")
"""Files that name special tokens by their text."""
ID_FILES = ("generation_config.json", "config.json")
"""Files that name the end token by its id."""
_TEXT_MODELS = ("text_config", "llm_config", "language_config")
"""Keys of `config.json` under which a model of text and images keeps its language model."""
_NAMES = {"bos_token", "eos_token", "pad_token", "unk_token"}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_MORE_NAMES = ("extra_special_tokens", "model_specific_special_tokens")
"""Keys under which `tokenizer_config.json` may have further names, each with its token."""


@dataclass(frozen=True, kw_only=True)
class NamedToken:
    """A special token as a file names it."""

    text: str
    file: Path
    flags: Mapping[str, bool] = field(default_factory=dict)
    """How it is found in text, by the names of `tokenizers.AddedToken`, where the file says so."""


def more_templates(folder: Path) -> list[Path]:
    """The chat templates that a model has beside chat_template.jinja, each by its file's name."""
    return sorted((folder / "additional_chat_templates").glob("*.jinja"))


def read_content(path: Path) -> bytes:
    """Raises `DataError` for a tokenizer's file that is missing, unreadable or empty."""
    content = read_bytes(path, "the tokenizer")
    if not content:
        raise DataError(f"{path}: the tokenizer file is empty; train or copy it again")
    return content


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object of a file beside a tokenizer. Raises `DataError` for anything else."""
    return read_json_object(path, f"{path.name}", fix="copy the file again", constants=True)


def token_text(value: Any, key: str, path: Path) -> str | None:
    """Text of a special token as the files write it: a string, or a serialized AddedToken.

    None where there is none. Raises `DataError` for another type.
    """
    if isinstance(value, dict):
        value = value.get("content")
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if key not in _NAMES:  # such as num_image_token, which is a count
        return None
    raise DataError(f"{path}: {key} is {value!r:.60}, which is no text; correct the file")


def special_tokens(
    folder: Path, text_of: Callable[[int], str | None] | None = None
) -> dict[str, NamedToken]:
    """`bos_token`, `eos_token` and the like that the files in `folder` name, by their names.

    `text_of` gives the text of an id, for the files that name the end token so; without it they are
    not asked. Raises `DataError` for a damaged file, and for an id that is none of the tokenizer's.
    """
    found: dict[str, NamedToken] = {}
    for path in naming_files(folder):
        found = _named_in(path) | found
    if "eos_token" not in found and text_of is not None:
        for name in ID_FILES:
            path = folder / name
            token = _end_id(path) if path.exists() else None
            if token is None:
                continue
            text = text_of(token) if 0 <= token < 1 << 31 else None
            if text is None:
                raise DataError(
                    f"{path}: names {token} as eos_token_id, which is no id of the tokenizer; "
                    "correct it, or name the end token as eos_token in tokenizer_config.json"
                )
            found["eos_token"] = NamedToken(text=text, file=path)
            break
    return found


def naming_files(folder: Path) -> list[Path]:
    """The files in `folder` that name special tokens, the one that counts first.

    As in `transformers`, special_tokens_map.json counts before a tokenizer_config.json that does
    not list its tokens under `added_tokens_decoder`, as old ones do not.
    """
    there = [folder / name for name in NAMING_FILES if (folder / name).exists()]
    if len(there) == 2 and read_settings(there[0]).get("added_tokens_decoder") is None:
        there.reverse()
    return there


def disagreements(folder: Path, named: Mapping[str, NamedToken]) -> list[str]:
    """What users should be told where another file in `folder` names another token than `named`."""
    return [
        f"{path}: {key} is {other.text!r}, but {token.file.name} beside it has {token.text!r}, "
        "which is taken, as transformers takes it; make them agree"
        for path in naming_files(folder)
        for key, other in _named_in(path).items()
        if (token := named.get(key)) is not None and token.text != other.text
    ]


def token_flags(value: Any) -> dict[str, bool]:
    """The flags of a serialized AddedToken; none of a string."""
    fields = value if isinstance(value, dict) else {}
    return {flag: bool(fields[flag]) for flag in _FLAGS if flag in fields}


def _named_in(path: Path) -> dict[str, NamedToken]:
    """The special tokens that one file names, by their names."""
    settings = read_settings(path)
    values = {
        key: value
        for key, value in settings.items()
        if key.endswith("_token") and not isinstance(value, bool)  # such as add_bos_token
    }
    for more in (settings.get(key) for key in _MORE_NAMES):
        values |= more if isinstance(more, dict) else {}
    texts = {key: token_text(value, key, path) for key, value in values.items()}
    return {
        key: NamedToken(text=text, file=path, flags=token_flags(values[key]))
        for key, text in texts.items()
        if text is not None
    }


def _end_id(path: Path) -> int | None:
    """The id of the end token, None where the file names none. Raises `DataError` for what is no
    id: a guess in its place would be silent."""
    settings = read_settings(path)
    nested = (settings.get(key) for key in _TEXT_MODELS)
    for values in (settings, *nested):
        given = values.get("eos_token_id") if isinstance(values, dict) else None
        # The first of several ends documents, the others turns.
        value = next(iter(given), None) if isinstance(given, list) else given
        if value is None:
            continue
        if type(value) is not int:
            raise DataError(
                f"{path}: eos_token_id is {given!r:.60}, expected an id or a list of ids; correct "
                "the file, or name the end token as eos_token in tokenizer_config.json"
            )
        return value
    return None

"""The list of weights and prefixes in a file of Megatron, NeMo or one of their kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from megatron_fastmix.config.strict_yaml import parse_yaml
from megatron_fastmix.corpus.indexed.answer_rows import is_answer_only
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.command_line import (
    TRAIN_FLAGS,
    number,
    shell_words,
    words_after_flag,
)
from megatron_fastmix.text_files import parse_json

_FILE_FLAGS = ("--per-split-data-args-path", "--data-args-path")
_BLEND_KEYS = (
    *("data_prefix", "blend_per_split", "blend", "paths"),
    *(form for flag in TRAIN_FLAGS for form in (flag, flag[2:], flag[2:].replace("-", "_"))),
)
"""Keys of configurations that hold a blend: of NeMo 1, Megatron-Bridge (two), NeMo 2, and
Megatron's flags as YAML writes them. The first that a file has counts."""
_PAIRED_KEYS = (("train_data_paths", "train_data_weights"), ("dataset_folder", "dataset_weights"))
"""Keys that hold prefixes and those that hold their weights: of GPT-NeoX and nanotron, which also
has prefixes alone, or with their weights as a mapping."""
_HELD_OUT = re.compile(r"(val|valid|validation|test)([_-]ds)?")
"""Keys of what a configuration validates on: no blend to train on."""
_ASSIGNED = re.compile(
    r"\s*(?:[\w+.]*\.)?(paths|data_prefix|blend|blend_per_split)\s*=\s*([\[{].*[\]}]),?\s*",
    re.DOTALL,
)
"""NeMo 2's argument in Python, and the overrides of Hydra for NeMo 1 and Megatron-Bridge, alone or
as a word of a command."""


def blend_words(text: str, where: str) -> list[Any]:
    """The words of the blend in a file's text, which is of any form that `read_blend` tells.

    `where` names the file in errors, and its ending tells what the text is. Raises `DataError`.
    """
    if text.lstrip().startswith(("{", "[")) or where.endswith((".yaml", ".yml", ".json")):
        return structured_words(parse_structured(text, where), where)
    if assigned := _assigned(text, where):
        return structured_words({assigned[1]: _parse_yaml(assigned[2], where)}, where)
    if any(flag in text for flag in TRAIN_FLAGS):
        try:
            return list(_listed(words_after_flag(text, where), where))
        except ValueError as error:
            raise DataError(f"{where}: not a command line: {error}") from None
    words = text.replace("=", " ").split()
    comment = next((word for word in words if word.startswith("#")), "#!")
    if not comment.startswith("#!"):  # a script may have them
        raise DataError(
            f"{where}: has a comment ({comment} ...), of which Megatron reads every word; leave "
            "comments out"
        )
    for flag in _FILE_FLAGS:
        if flag in words:
            file = [*words[words.index(flag) + 1 :], "the file"][0]
            raise DataError(f"{where}: has {flag}, which names the file of the blend: give {file}")
    if any(word.startswith("--") for word in words):
        raise DataError(
            f"{where}: is a command line without {' or '.join(TRAIN_FLAGS)}; give the blend alone"
        )
    return text.split()


def _assigned(text: str, where: str) -> re.Match[str] | None:
    """The match of `_ASSIGNED` with the whole text, or with a word of a command. Raises `DataError`
    for several."""
    whole = _ASSIGNED.fullmatch(text)
    if whole or "=" not in text:
        return whole
    try:
        found = [match for word in shell_words(text) if (match := _ASSIGNED.fullmatch(word))]
    except ValueError:  # quotation marks that no shell wrote
        return None
    if len(found) > 1:
        raise DataError(f"{where}: has several {found[1][1]}; give a file with the one to read")
    return found[0] if found else None


def structured_words(value: Any, where: str) -> list[Any]:
    """The list in values of JSON or YAML: alone, by split under `train`, or under one of
    `_BLEND_KEYS`. Raises `DataError` where there is none, or several."""
    what = "the blend"
    if isinstance(value, dict) and isinstance(value.get("splits"), dict):
        raise DataError(
            f"{where}: is a metadataset of Energon, whose weights count documents or rows, however "
            "long; a search's are shares of tokens: give the blend in a form that Megatron reads"
        )
    value = _paired(value, where)
    if isinstance(value, dict):
        for key in _BLEND_KEYS:
            found = list(_values_of(key, value))
            if len(found) > 1:
                raise DataError(f"{where}: has several {key}; give a file with the one to read")
            if found:
                what, value = key, found[0]
                if key == "blend_per_split" and isinstance(value, list):
                    value = value[0]  # train, valid and test
                break
    if isinstance(value, dict):
        if "train" not in value:
            raise DataError(
                f"{where}: has none of the keys train, {', '.join(_BLEND_KEYS)}; expected a list "
                "of weights and prefixes under one of them"
            )
        what, value = "train", value["train"]
    value = _listed(value, where)
    if _is_pairs(value):
        words = (word for pair in value[:2] for word in sorted(pair, key=_is_no_number))
        raise DataError(
            f"{where}: {what} is a list of pairs, {value[0]} and so on; write weights and prefixes "
            f"in turn, in one list: [{', '.join(map(str, words))}, ...]"
        )
    if _is_prefixes_and_weights(value):
        prefixes, weights = value
        if weights is None:
            return list(prefixes)
        if len(prefixes) != len(weights):
            raise DataError(
                f"{where}: {what} has {len(prefixes)} prefixes and {len(weights)} weights; "
                "expected as many"
            )
        value = [word for pair in zip(weights, prefixes, strict=True) for word in pair]
    if isinstance(value, list):
        value = [word for each in value for word in _entry(each)]
    else:
        raise DataError(f"{where}: {what} is {value!r}; expected a list of weights and prefixes")
    for word in value:
        if not isinstance(word, str | int | float) or isinstance(word, bool):
            raise DataError(
                f"{where}: {what} holds {word!r}; expected a list of weights and prefixes"
            )
    return value


def _paired(values: Any, where: str) -> Any:
    """Prefixes and weights of two keys, at any depth, as Megatron-core's pair; `values` where there
    are none."""
    found = [
        (key, mapping[key], mapping.get(weights))
        for mapping in _mappings(values)
        for key, weights in _PAIRED_KEYS
        if mapping.get(key)
    ]
    if not found:
        return values
    key, prefixes, weights = found[0]
    if len(found) > 1:
        raise DataError(f"{where}: has several {key}; give a file with the one to read")
    if isinstance(prefixes, dict):
        weights, prefixes = list(prefixes.values()), list(prefixes)
    prefixes = [prefixes] if isinstance(prefixes, str) else prefixes
    for prefix in prefixes if isinstance(prefixes, list) else []:
        if isinstance(prefix, str) and is_answer_only(prefix):
            raise DataError(
                f"{where}: {key} has {prefix}, which is answer-only; its weights count all tokens, "
                "a search's those of answers: give the blend in a form that Megatron reads"
            )
    return [prefixes, weights]


def _mappings(values: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in `values` that is not held out, with _ for the - in its keys."""
    if isinstance(values, dict):
        yield {str(key).replace("-", "_"): value for key, value in values.items()}
    if isinstance(values, dict | list):
        for key, value in _items(values):
            if not _is_held_out(key):
                yield from _mappings(value)


def _entry(entry: Any) -> list[Any]:
    """The words of one item of a list: a word, `{weight, path}`, or a text `0.3 /d/a`."""
    if isinstance(entry, dict) and entry.keys() == {"weight", "path"}:
        return [entry["weight"], entry["path"]]
    words = entry.split() if isinstance(entry, str) else []
    return words if len(words) == 2 and number(words[0]) is not None else [entry]


def _listed(value: Any, where: str) -> Any:
    """The words of a list that is written as one text: `"0.3 /d/a 0.7 /d/b"`, alone or as the only
    item of a list, as quoting makes it, or `"[0.3,/d/a,0.7,/d/b]"`, as Hydra has it."""
    only = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(only, str):
        return value
    if only.lstrip().startswith("["):
        return _parse_yaml(only, where)
    words = only.split()
    # A path may hold spaces, but then no number is before it.
    return words if only is value or (words and number(words[0]) is not None) else value


def parse_structured(text: str, where: str) -> Any:
    """The values in a text of JSON or YAML. Raises `DataError`."""
    if text.lstrip().startswith(("{", "[")):
        try:
            return parse_json(text)
        except ValueError as error:
            if not where.endswith((".yaml", ".yml")):
                raise DataError(f"{where}: {error}") from None
    return _parse_yaml(text, where)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return parse_yaml(text, where)
    except ConfigError as error:
        raise DataError(str(error)) from None


def _is_prefixes_and_weights(value: Any) -> bool:
    """Whether it is Megatron-core's `(prefixes, weights)`, of which the weights may be None."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    prefixes, weights = value
    return isinstance(prefixes, list) and (weights is None or isinstance(weights, list))


def _is_pairs(value: Any) -> bool:
    """Whether each item is a list of a weight and a prefix, which no reader takes."""
    return (
        isinstance(value, list)
        and value != []
        and all(
            isinstance(each, list) and len(each) == 2 and sum(map(_is_no_number, each)) == 1
            for each in value
        )
    )


def _is_no_number(word: object) -> bool:
    return number(word) is None


def _values_of(wanted: str, values: Any) -> Iterator[Any]:
    """Every value of a key that is set, at any depth, but in what is held out."""
    for key, value in _items(values):
        if key == wanted and value:
            yield value
        elif isinstance(value, dict | list) and not _is_held_out(key):
            yield from _values_of(wanted, value)


def _items(values: dict[Any, Any] | list[Any]) -> Iterable[tuple[Any, Any]]:
    return values.items() if isinstance(values, dict) else enumerate(values)


def _is_held_out(key: object) -> bool:
    return isinstance(key, str) and _HELD_OUT.fullmatch(key) is not None

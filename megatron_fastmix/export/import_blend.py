"""Blends of Megatron, NeMo and Megatron-Bridge read back: shares by prefix.

The rules are those of `get_blend_from_list`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_fastmix.corpus.indexed.answer_rows import count_answer_rows, is_answer_only
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.errors import DataError
from megatron_fastmix.export.blend_words import blend_words, parse_structured, structured_words
from megatron_fastmix.export.command_line import number
from megatron_fastmix.export.nemotron import DataBlendEntry, is_data_blend, read_data_blend
from megatron_fastmix.text_files import read_text

_SUMMABLE = 1e300
"""Of weights above it the sum may be beyond a float."""


def read_blend(path: str | Path) -> dict[str, float]:
    """Shares by prefix, summing to 1, in the order of the file.

    The file holds what `--data-args-path` or `--per-split-data-args-path` (its `train`) reads, a
    command line with `--data-path` or `--train-data-path`, the list alone as JSON or YAML, a
    configuration of NeMo with `data_prefix` or `paths`, one of Megatron-Bridge with `blend` or
    `blend_per_split`, or one of these keys with `=` before its list, alone or in a command. Without
    weights the shares are those of the datasets' tokens, as with Megatron, so that the datasets
    have to be there. Raises `DataError` for anything else, and for weights that are not positive or
    prefixes that recur.
    """
    text = read_text(path, "the blend", fix="give a file that Megatron reads a blend from")
    return parse_blend(blend_words(text, str(path)), str(path))


def read_held_out(path: str | Path) -> list[str]:
    """Prefixes of the `valid` of what `--per-split-data-args-path` reads; none in other files.

    Raises `DataError` as `read_blend` does.
    """
    text = read_text(path, "the blend", fix="give a file that Megatron reads a blend from")
    value = parse_structured(text, str(path)) if text.lstrip().startswith("{") else None
    valid = value.get("valid") if isinstance(value, dict) and "train" in value else None
    if not valid:
        return []
    return list(parse_blend(structured_words({"train": valid}, str(path)), f"{path}: valid"))


def shares_of_loss_tokens(
    shares: Mapping[str, float], seq_length: int, prefixes: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Shares of the samples that Megatron draws as a search has them: of answer-only rows, whose
    answers differ in length, of answer tokens. Those of text are the same. The datasets have to be
    there. `prefixes` has those of shares by name; without it they are by prefix. Raises `DataError`
    for a damaged loss mask."""
    prefix_of = prefixes or {prefix: prefix for prefix in shares}
    rows = {key for key in shares if is_answer_only(prefix_of[key])}
    if not rows:
        return dict(shares)
    lengths = {
        key: count_answer_rows(prefix_of[key], seq_length).mean_answer_tokens
        if key in rows
        else seq_length
        for key in shares
    }
    total = math.fsum(share * lengths[key] for key, share in shares.items())
    return {key: share * lengths[key] / total for key, share in shares.items()}


def read_named_blend(path: str | Path) -> list[DataBlendEntry] | None:
    """The datasets of Nemotron's `DataBlend`, which have names; None for every other file.

    Raises `DataError` for a file that cannot be read, and for a `DataBlend` that is none.
    """
    text = read_text(path, "the blend", fix="give a file that Megatron reads a blend from")
    if not text.lstrip().startswith("{"):
        return None
    value = parse_structured(text, str(path))
    return read_data_blend(value, str(path)) if is_data_blend(value) else None


def parse_blend(words: Sequence[object], where: str) -> dict[str, float]:
    """Shares by prefix from weights and prefixes in turn; `where` names the place in errors.

    Weights are numbers or their text.
    """
    if not words:
        raise DataError(f"{where}: holds no blend; expected WEIGHT PREFIX ...")
    if len(words) == 1 and number(words[0]) is None:
        only = _prefix(words[0], where)
        if not {"$", ","} & set(only):
            return {only: 1.0}  # all of it, whatever its size
    weights = [number(word) for word in words[::2]]
    # One word alone is a path, whatever it looks like.
    if len(words) % 2 and words[1:] and _is_by_turns(words):
        raise DataError(f"{where}: the last weight, {words[-1]}, has no prefix; add it")
    if len(words) % 2 or all(weight is None for weight in weights):
        return _by_size(words, where)
    shares: dict[str, float] = {}
    places: set[str] = set()
    for word, weight, given in zip(words[::2], weights, words[1::2], strict=True):
        prefix = _prefix(given, where)
        if weight is None or not 0 <= weight < math.inf:
            raise DataError(
                f"{where}: weight of {prefix} is {word!r}; expected a number, 0 or more"
            )
        if (place := os.path.normpath(prefix)) in places:
            raise DataError(f"{where}: {prefix} occurs twice; add its weights up in one entry")
        places.add(place)
        shares[prefix] = weight
    if (largest := max(shares.values())) > _SUMMABLE:
        shares = {prefix: weight / largest for prefix, weight in shares.items()}
    total = math.fsum(shares.values())
    if not total:
        raise DataError(f"{where}: all weights are 0; expected one above 0")
    # No sample is drawn of what weighs nothing.
    return {prefix: weight / total for prefix, weight in shares.items() if weight}


def _by_size(words: Sequence[object], where: str) -> dict[str, float]:
    """Shares of the datasets' tokens: Megatron counts their samples, which are of one length."""
    tokens: dict[str, int] = {}
    variable = next((word for word in words if isinstance(word, str) and "$" in word), None)
    if variable is not None:
        raise DataError(
            f"{where}: holds {variable}, which a shell puts its value for; write that in its "
            "place, as `echo` prints it, or leave it out where it is no part of the blend"
        )
    for word in words:
        prefix = _prefix(word, where)
        try:
            found = inspect_indexed_dataset(prefix).tokens
        except DataError as error:
            if all(number(each) is not None for each in words[1::2]) and len(words) % 2 == 0:
                raise DataError(
                    f"{where}: has each prefix before its weight; expected WEIGHT PREFIX ..., as "
                    "Megatron reads it: turn them round"
                ) from None
            raise DataError(
                f"{where}: lists prefixes without weights, and Megatron then infers them from "
                f"dataset sizes; expected WEIGHT PREFIX ..., or datasets that are here: {error}"
            ) from None
        if prefix in tokens:
            raise DataError(f"{where}: {prefix} occurs twice; name it once")
        if not found:
            raise DataError(f"{where}: {prefix} has no tokens, so no weight; leave it out")
        tokens[prefix] = found
    return {prefix: count / sum(tokens.values()) for prefix, count in tokens.items()}


def _prefix(word: object, where: str) -> str:
    if not isinstance(word, str) or not word.strip():
        raise DataError(f"{where}: found {word!r} in the place of a prefix; expected its path")
    prefix = word.strip()
    if prefix == "???":
        raise DataError(
            f"{where}: found ??? in the place of a prefix, which in Hydra's configurations is a "
            "value that is still missing; write the weights and prefixes there"
        )
    if prefix[0] in "\"'@":
        what = "a reference" if prefix[0] == "@" else "a quotation mark"
        raise DataError(
            f"{where}: found {word!r} in the place of a prefix; Megatron takes {what} here for a "
            "part of the path: write the plain path"
        )
    for end in (".bin", ".idx"):
        if prefix.endswith(end) and not os.path.exists(f"{prefix}.idx"):
            raise DataError(
                f"{where}: found {word!r} in the place of a prefix, to which Megatron adds .bin "
                f"and .idx; write {prefix.removesuffix(end)}"
            )
    return prefix


def _is_by_turns(words: Sequence[object]) -> bool:
    return all((number(word) is None) == bool(place % 2) for place, word in enumerate(words))

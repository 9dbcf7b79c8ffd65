"""Megatron's three forms of a blend, read back. The rules are `get_blend_from_list`'s."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from megatron_fastmix.errors import DataError

TRAIN_FLAGS = ("--data-path", "--train-data-path")


def read_blend(path: str | Path) -> dict[str, float]:
    """Shares by prefix, summing to 1, in the order of the file.

    The file holds what `--data-args-path` or `--per-split-data-args-path` (its `train`) reads, or
    a command line with `--data-path` or `--train-data-path`. Raises `DataError` for anything else,
    for a blend without weights, and for weights that are not positive or prefixes that recur.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot read the blend: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not text; give a file that Megatron reads a blend from") from None
    return parse_blend(_words(text, str(path)), str(path))


def parse_blend(words: Sequence[str], where: str) -> dict[str, float]:
    """Shares by prefix from weights and prefixes in turn; `where` names the place in errors."""
    if not words:
        raise DataError(f"{where}: holds no blend; expected WEIGHT PREFIX ...")
    weights = [_number(word) for word in words[::2]]
    if len(words) % 2 or all(weight is None for weight in weights):
        raise DataError(
            f"{where}: lists prefixes without weights, and Megatron then infers them from dataset "
            "sizes; expected WEIGHT PREFIX ..."
        )
    shares: dict[str, float] = {}
    for word, weight, prefix in zip(words[::2], weights, words[1::2], strict=True):
        prefix = prefix.strip()
        if weight is None or not 0 < weight < math.inf:
            raise DataError(f"{where}: weight of {prefix} is {word!r}; expected a number above 0")
        if prefix in shares:
            raise DataError(f"{where}: {prefix} occurs twice; add its weights up in one entry")
        shares[prefix] = weight
    total = math.fsum(shares.values())
    return {prefix: weight / total for prefix, weight in shares.items()}


def _words(text: str, where: str) -> list[str]:
    if text.lstrip().startswith("{"):
        return _train_split(text, where)
    if any(flag in text for flag in TRAIN_FLAGS):
        try:
            return _after_flag(shlex.split(text.replace("\\\n", " ")), where)
        except ValueError as error:
            raise DataError(f"{where}: not a command line: {error}") from None
    return text.split()


def _train_split(text: str, where: str) -> list[str]:
    try:
        train = json.loads(text).get("train")
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    if isinstance(train, str):
        train = train.split()
    if not isinstance(train, list) or not all(isinstance(word, str) for word in train):
        raise DataError(f"{where}: train is {train!r}; expected a list of weights and prefixes")
    return train


def _after_flag(arguments: list[str], where: str) -> list[str]:
    """What follows the flag, up to the next flag; `--data-path=` with one value is refused."""
    for place, argument in enumerate(arguments):
        if argument in TRAIN_FLAGS:
            words = arguments[place + 1 :]
            end = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
            return words[:end]
    raise DataError(f"{where}: expected {' or '.join(TRAIN_FLAGS)} WEIGHT PREFIX ...")


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None

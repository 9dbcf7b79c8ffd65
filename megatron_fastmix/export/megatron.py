"""Megatron-LM's three forms of a blend; Megatron-DeepSpeed reads the first.

Source: `megatron/training/arguments.py` (`--data-path`, `--data-args-path`,
`--per-split-data-args-path`) and `megatron.core.datasets.utils.get_blend_from_list`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.blend import Blend, BlendEntry


def command_line(blend: Blend) -> str:
    """`--data-path WEIGHT PREFIX ...`, quoted for a POSIX shell."""
    return "--data-path " + " ".join(map(shlex.quote, pairs(blend.sources))) + "\n"


def data_args(blend: Blend) -> str:
    """The file of `--data-args-path`: weights and prefixes, which Megatron splits at white space.

    Raises `DataError` for a prefix with white space, which the format cannot express.
    """
    for entry in blend.sources:
        if entry.path.split() != [entry.path]:
            raise DataError(
                f"source {entry.name}: path {entry.path!r} has white space or is empty, and "
                "Megatron splits the file of --data-args-path at white space; use the format "
                "megatron-per-split, or a path without white space (a symbolic link will do)"
            )
    return "".join(f"{entry.weight} {entry.path}\n" for entry in blend.sources)


def per_split(blend: Blend) -> str:
    """The file of `--per-split-data-args-path`: train from the sources, valid from the targets.

    All three keys are there, as Megatron requires; test is null. One target has no weight, which
    `--full-validation` refuses.
    """
    return by_split(pairs(blend.sources), pairs(blend.targets)[len(blend.targets) == 1 :])


def by_split(train: list[str], valid: list[str]) -> str:
    """JSON with a list for each split, null where it is empty, and no test."""
    return json.dumps({"train": train, "valid": valid or None, "test": None}, indent=1) + "\n"


def pairs(entries: Sequence[BlendEntry]) -> list[str]:
    """Weights and prefixes in turn, as Megatron's `get_blend_from_list` takes them.

    Raises `DataError` for a prefix that is empty or that Megatron's stripping would change.
    """
    for entry in entries:
        if entry.path != entry.path.strip() or not entry.path:
            raise DataError(
                f"{entry.name}: path {entry.path!r} is empty or begins or ends with white space, "
                "which Megatron strips; rename the file"
            )
    return [text for entry in entries for text in (entry.weight, entry.path)]

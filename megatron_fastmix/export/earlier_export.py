"""Whether a file is an export, so that a new one may take its place."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from megatron_fastmix.config.strict_yaml import parse_yaml
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.command_line import number
from megatron_fastmix.export.hf_datasets import FUNCTION, HEAD
from megatron_fastmix.text_files import parse_json

_LARGEST = 1 << 26
"""Bytes; what is larger is a corpus, and not worth reading."""

_ENTRY = ("name", "path", "weight")
_SPLITS = ("train", "valid", "test")
_ENERGON = ("__module__", "__class__")
_FORMS: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            _SPLITS,
            (f"datasets.{key}" for key in _ENTRY),
            (f"{split}.{key}" for split in ("train", "valid") for key in _ENTRY),
            (f"{split}-data-{what}" for split in _SPLITS for what in ("paths", "weights")),
            ("dataset.blend", "dataset.split", "dataset.blend_per_split"),
            ("dataset.source.path_or_dataset", "dataset.source_weights"),
            ("dataset.dataset_folder", "dataset.dataset_weights"),
            ("model.data.data_prefix",),
            (
                *("sources.source_name", "sources.target_ratio"),
                *("sources.max_repetition_ratio", "sources.paths"),
            ),
            (*_ENERGON, *(f"splits.train.blend.{key}" for key in ("weight", "path"))),
            (*_ENERGON, *(f"splits.train.blend_epochized.{k}" for k in ("repetitions", "path"))),
            ("streams.local", "streams.proportion"),
            ("streams.local", "streams.repeat"),
            ("dataset", "mix_strategy", "interleave_probs"),
        ),
    )
)
"""The keys of every format of JSON and YAML, joined by dots, without those that are names."""


def is_export(path: str | Path) -> bool:
    """Whether the file at `path` is empty or has the form of one of the formats, and nothing else:
    no further key, and no comment of a user's."""
    try:
        if os.path.getsize(path) > _LARGEST:
            return False
        text = Path(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeError):
        return False
    return not text.strip() or _is_plain(text) or _is_structured(text)


def _is_plain(text: str) -> bool:
    """Whether it is a file of --data-args-path, an argument, or Python for Hugging Face."""
    if text.startswith(HEAD):
        return text.endswith(FUNCTION)
    one_line = text.count("\n") == 1
    try:
        if text.startswith("--data-path "):
            return one_line and _is_blend(shlex.split(text)[1:])
        if text.startswith("paths="):
            return one_line and _is_blend(parse_json(text.removeprefix("paths=")))
    except ValueError:
        return False
    return all(len(line.split()) == 2 for line in text.splitlines()) and _is_blend(text.split())


def _is_blend(words: Any) -> bool:
    """Whether these are weights, which sum to 1, and prefixes in turn, and nothing else."""
    if not isinstance(words, list) or len(words) % 2:
        return False
    weights = [number(word) for word in words[::2]]
    return math.isclose(math.fsum(w for w in weights if w is not None), 1) and None not in weights


def _is_structured(text: str) -> bool:
    try:
        if text.startswith("{"):
            return _keys(parse_json(text)) in _FORMS
        values = parse_yaml(text, "")
        # As it was written, after OLMo-core's first line: comments and a user's hand show.
        written = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        head = "# for requested_tokens up to "
        own = text.partition("\n")[2] if text.startswith(head) else text
        return own == written and _keys(values) in _FORMS
    except (ValueError, ConfigError, RecursionError, yaml.YAMLError):
        return False


def _keys(values: Any) -> frozenset[str]:
    if not isinstance(values, dict):
        return frozenset()
    if isinstance(streams := values.get("streams"), dict):  # by name
        values = values | {"streams": list(streams.values())}
    return frozenset(_leaves(values, ""))


def _leaves(value: Any, above: str) -> Iterator[str]:
    """The dotted keys of all that is no mapping and holds none; items of a list count as one."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, f"{above}.{key}" if above else str(key))
    elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        for each in value:
            yield from _leaves(each, above)
    else:
        yield above

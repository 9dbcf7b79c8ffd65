"""The values that a field had in the inputs, kept beside the datasets: `PREFIX.split_by.json`.

With the inputs as they were then, by size and time of change, a second run need not read them to
find that everything is up to date.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.config import strict_yaml
from megatron_fastmix.corpus.indexed.manifest import InputRecord
from megatron_fastmix.corpus.partition import Partition
from megatron_fastmix.corpus.preprocess_config import DatasetConfig
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.text_files import read_json


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What the file holds; its first key tells it from text."""

    split_by_sha256: str
    """Of the question that the partition answers."""
    partition: Partition


def known_partition(dataset: DatasetConfig, inputs: Sequence[InputRecord]) -> Partition | None:
    """That of a dataset whose inputs are as they were; None where they must be read."""
    try:
        values = read_json(_path(dataset), "the values of split_by")
        found: _Content = strict_yaml.from_dict(_Content, values)
    except (DataError, ConfigError):
        return None
    if found.split_by_sha256 != _question(dataset, inputs):
        return None
    if dataset.quantiles is None and len(found.partition.values) > dataset.max_values:
        return None  # the reading tells
    return found.partition


def keep_partition(
    dataset: DatasetConfig, inputs: Sequence[InputRecord], partition: Partition
) -> None:
    """Writes the file, unless it is there. Raises `OSError`."""
    if known_partition(dataset, inputs) == partition:
        return
    content = _Content(split_by_sha256=_question(dataset, inputs), partition=partition)
    text = json.dumps(dataclasses.asdict(content), indent=1)
    write_atomically(_path(dataset), text + "\n")


def _path(dataset: DatasetConfig) -> Path:
    return Path(f"{dataset.prefix}.split_by.json")


def _question(dataset: DatasetConfig, inputs: Sequence[InputRecord]) -> str:
    keys = ("split_by", "quantiles", "record_type", "json_key", "json_keys", "input_format")
    content = [
        [getattr(dataset, key) for key in keys],
        [dataclasses.asdict(record) for record in inputs],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

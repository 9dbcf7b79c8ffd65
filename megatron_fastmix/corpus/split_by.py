"""Splitting a dataset by a field of its records: which values there are, and whose dataset a
record goes to.

A first pass over the inputs reads the field alone, so that what is written follows from the inputs
and not from their order, and a second run finds the same datasets, without that pass where the
inputs are as they were.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_fastmix.corpus.documents.records import RecordParser
from megatron_fastmix.corpus.indexed.manifest import InputRecord
from megatron_fastmix.corpus.known_partition import known_partition
from megatron_fastmix.corpus.partition import Partition, score, value_text
from megatron_fastmix.corpus.preprocess_config import DatasetConfig
from megatron_fastmix.corpus.reading.readers import Chunk, iter_chunks
from megatron_fastmix.corpus.workers import map_chunks
from megatron_fastmix.errors import ConfigError

_LONGEST = 60
"""Characters of a value in a file's name."""


@dataclass(frozen=True, kw_only=True)
class PartitionedDataset(DatasetConfig):
    """A dataset with the values of its `split_by`, as the inputs have them."""

    partition: Partition

    @property
    def outputs(self) -> list[tuple[str, str, bool]]:
        """(prefix, name, held out) of each value and split, in order."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(DatasetConfig)}
        name = own["name"] or DatasetConfig(**own).outputs[0][1]
        plain = own | {"split_by": None, "quantiles": None}
        if self.split is not None and not own["name"]:
            name = DatasetConfig(**plain | {"split": None}).outputs[0][1]
        return [
            output
            for part in self.partition.names
            for output in DatasetConfig(
                **plain | {"prefix": f"{self.prefix}_{part}", "name": f"{name}_{part}"}
            ).outputs
        ]


def safe_names(values: Sequence[str]) -> list[str]:
    """Parts of file names that tell the values apart: letters, digits, `-`, `.` and `_`.

    A value that is none, or would share its name with another (on file systems that take capitals
    for small letters, too), has the first eight digits of its sha256 in it.
    """
    plain = [re.sub(r"[^\w.-]+", "_", value).strip("._") for value in values]
    times = Counter(name.casefold() for name in plain)
    found = []
    for value, name in zip(values, plain, strict=True):
        if name and len(name) <= _LONGEST and times[name.casefold()] == 1:
            found.append(name)
            continue
        digits = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        found.append("-".join(filter(None, [name[:_LONGEST], digits])))
    return found


def partitioned(
    dataset: DatasetConfig, inputs: Sequence[InputRecord], workers: int
) -> DatasetConfig:
    """`dataset` with the values of its field in `inputs`; itself where it is not split by one.

    Raises `ConfigError` for too many values, for fewer scores than quantiles can tell apart, and
    where no record has the field; malformed records are left to the writing, which names them.
    """
    if dataset.split_by is None:
        return dataset
    known = known_partition(dataset, inputs)
    if known is not None:
        return PartitionedDataset(**vars(dataset), partition=known)
    parser = RecordParser(
        record_type=dataset.record_type,
        json_key=dataset.json_key,
        json_keys=dataset.json_keys,
        field=dataset.split_by,
    )
    read = _FieldReader(parser=parser, scores=dataset.quantiles is not None)
    paths = [record.path for record in inputs]
    chunks = (c for path in paths for c in iter_chunks(path, dataset.input_format, parser.columns))
    found = map_chunks(read, chunks, workers)
    partition = (_by_value if dataset.quantiles is None else _by_quantile)(dataset, found)
    return PartitionedDataset(**vars(dataset), partition=partition)


Found = set[str] | bytes
"""Of a chunk: its values, or its scores as float64."""


@dataclass(frozen=True, kw_only=True)
class _FieldReader:
    """Callable from chunk to what its records have in the field; those without are left out."""

    parser: RecordParser
    scores: bool

    def __call__(self, chunk: Chunk) -> Found:
        values: set[str] = set()
        scores = array("d")
        for record in chunk.records():
            try:
                value = self.parser.field_of(record, chunk.record_format)
                if value is None:
                    continue
                if self.scores:
                    scores.append(score(value))
                else:
                    values.add(value_text(value))
            except ValueError:
                continue  # the writing tells which line it is, or skips it as it is allowed to
        return scores.tobytes() if self.scores else values


def _by_value(dataset: DatasetConfig, found: Iterable[Found]) -> Partition:
    values: set[str] = set()
    for each in found:
        assert isinstance(each, set)
        values |= each
        if len(values) > dataset.max_values:
            some = ", ".join(sorted(values)[:5])
            raise ConfigError(
                f"{dataset.prefix}: split_by {dataset.split_by}: found more than "
                f"{dataset.max_values} values ({some}, ...), and each becomes a dataset; split by "
                "another field, by --quantiles for scores, or raise --max-values"
            )
    if not values:
        raise _nothing(dataset)
    ordered = sorted(values)
    return Partition(names=tuple(safe_names(ordered)), values=tuple(ordered))


def _by_quantile(dataset: DatasetConfig, found: Iterable[Found]) -> Partition:
    assert dataset.quantiles is not None
    scores = np.frombuffer(b"".join(each for each in found if isinstance(each, bytes)))
    if not len(scores):
        raise _nothing(dataset)
    count = dataset.quantiles
    edges = np.quantile(scores, np.arange(1, count) / count)
    sizes = np.bincount(np.searchsorted(edges, scores, side="right"), minlength=count)
    if not sizes.all():
        raise ConfigError(
            f"{dataset.prefix}: quantiles: found {count}, of which q{int(np.argmin(sizes)) + 1} "
            f"holds no record: {len(scores):,} records have {len(np.unique(scores)):,} scores of "
            f"{dataset.split_by}, and equal ones stay together; use fewer quantiles, or split by "
            "the value"
        )
    names = tuple(f"q{number}" for number in range(1, count + 1))
    return Partition(names=names, edges=tuple(edges.tolist()))


def _nothing(dataset: DatasetConfig) -> ConfigError:
    kind = "a text, an integer, true or false" if dataset.quantiles is None else "a finite number"
    return ConfigError(
        f"{dataset.prefix}: split_by {dataset.split_by}: no record has {kind} there; name a field "
        "of the records (dotted for a nested one)"
    )

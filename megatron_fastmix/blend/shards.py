"""A source that is more than one dataset."""

from __future__ import annotations

import bisect
import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch


class Shards(torch.utils.data.Dataset[dict[str, Any]]):
    """The datasets of one source behind each other; one epoch of it is one epoch of each.

    It has what a blend asks of a dataset: length, `index_split`, `config`, `dataset_path` and
    `unique_identifiers`.
    """

    def __init__(self, name: str, datasets: Sequence[Any]) -> None:
        """`datasets` are of one split and one configuration; `name` is the source's."""
        self.datasets = list(datasets)
        self.dataset_path = name
        self.index_split = datasets[0].index_split
        self.config = datasets[0].config
        self.unique_identifiers = OrderedDict(
            {"class": type(self).__name__, "datasets": [d.unique_identifiers for d in datasets]}
        )
        self._ends = list(itertools.accumulate(len(dataset) for dataset in datasets))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, idx: int) -> dict[str, Any]:
        shard = bisect.bisect_right(self._ends, idx)
        before = self._ends[shard - 1] if shard else 0
        sample: dict[str, Any] = self.datasets[shard][idx - before]
        return sample


def one_each(sources: Mapping[str, Sequence[Any]]) -> list[Any]:
    """One dataset for each source, from the datasets of each.

    All are `Shards` where one of them is, because a blend wants datasets of one class.
    """
    if all(len(datasets) == 1 for datasets in sources.values()):
        return [datasets[0] for datasets in sources.values()]
    return [Shards(name, datasets) for name, datasets in sources.items()]

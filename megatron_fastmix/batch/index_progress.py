"""Says how far the indexing of the datasets has come, where that takes long."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

EVERY_SECONDS = 10.0


class IndexProgress:
    """Counts datasets as Megatron's builder makes them; rank 0 says so, every `EVERY_SECONDS`."""

    def __init__(self, total: int, sources: Mapping[str, Sequence[str]] | None = None) -> None:
        """`total` datasets; `sources` are their prefixes by source, where they have one."""
        self.total = total
        self.done = 0
        self._sources = sources or {}
        self._silent = torch.distributed.is_initialized() and torch.distributed.get_rank() != 0
        self._last = time.monotonic()

    def begin(self, path: str | None) -> None:
        """The next dataset is indexed."""
        self.done += 1
        now = time.monotonic()
        if not self._silent and now - self._last >= EVERY_SECONDS:
            self._last = now
            print(f"indexing {self._at(path)}: {path}", flush=True)

    def _at(self, path: str | None) -> str:
        dataset = f"dataset {self.done:,} of {self.total:,}"
        for number, prefixes in enumerate(self._sources.values(), start=1):
            if path in prefixes:
                source = f"source {number:,} of {len(self._sources):,}"
                return source if len(self._sources) == self.total else f"{source}, {dataset}"
        return dataset

    def counted(self, dataset_class: type[Any]) -> type[Any]:
        """`dataset_class`, whose instances are counted here: the same class at every call, since
        the datasets of a blend must be of one."""
        counted = _counted(dataset_class)
        counted.progress = self  # type: ignore[attr-defined]
        return counted


_COUNTED: dict[type[Any], type[Any]] = {}


def _counted(dataset_class: type[Any]) -> type[Any]:
    if dataset_class in _COUNTED:
        return _COUNTED[dataset_class]

    class Counted(dataset_class):  # type: ignore[misc]
        progress: IndexProgress

        def __init__(self, dataset: Any, dataset_path: str | None, *others: Any) -> None:
            self.progress.begin(dataset_path)
            super().__init__(dataset, dataset_path, *others)

    # Megatron names a cached index after the class.
    Counted.__name__ = dataset_class.__name__
    return _COUNTED.setdefault(dataset_class, Counted)

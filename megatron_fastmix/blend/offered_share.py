"""The part of a source that a search may read, so that it repeats as in the run to come."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from megatron_fastmix.blend.order.draw_order import key_of, permute


class OfferedShare(torch.utils.data.Dataset[dict[str, Any]]):
    """`share` of a dataset's samples, chosen by `seed` alone; one or more.

    A search of N samples that offers the share N·l/D of a source whose samples have l loss tokens,
    and draws by α, reads it as often as a run of D loss tokens does under α: α·D/U times for a
    source of U ("simulated epoching", arXiv 2606.07597). A larger share holds the samples of a
    smaller one. It has what a blend asks of a dataset.
    """

    def __init__(self, dataset: Any, share: float, seed: int, name: str) -> None:
        """`name` is the source's. `share` is above 0 and at most 1."""
        self.dataset = dataset
        self.dataset_path = dataset.dataset_path
        self.index_split = dataset.index_split
        self.config = dataset.config
        self.unique_identifiers = OrderedDict(
            {
                "class": type(self).__name__,
                "dataset": dataset.unique_identifiers,
                "share": share,
                "seed": seed,
            }
        )
        self._length = min(len(dataset), max(1, round(share * len(dataset))))
        self._key = key_of(seed, f"offered/{name}", 0)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, idx: int) -> dict[str, Any]:
        sample: dict[str, Any] = self.dataset[permute(idx, len(self.dataset), self._key)]
        return sample

"""`BlendedDataset` whose draws are computed instead of stored, with a mixture that may move."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy
from megatron.core.datasets.blended_dataset import BlendedDataset

from megatron_fastmix.blend.draw_order import DrawOrder, epoch_sample
from megatron_fastmix.errors import DataError
from megatron_fastmix.mixture import Mixture


class FastMixBlendedDataset(BlendedDataset):
    """Drop-in for Megatron-core's `BlendedDataset`: same constructor, attributes and keys.

    Sources are drawn uniformly; the mixture acts through the loss, whose factor for a sample is
    `mixture.loss_weights[dataset_id]` (DESIGN: sampling by α and weighting by K·α have equal
    expectations). Draws are a pure function of (seed, index), so nothing is built, cached or kept
    in memory, and an index past the size of the sources goes on with their next epoch.

    Raises `DataError` where the blend does not have one dataset for each source of the mixture.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        weights: Sequence[float],
        size: int | None,
        config: Any,
        *,
        mixture: Mixture,
        block_size: int,
        num_samples: int | None = None,
    ) -> None:
        # BlendedDataset.__init__ would build and cache one index entry per sample.
        if len(datasets) != len(mixture.names):
            raise DataError(
                f"the blend has {len(datasets)} datasets, the mixture {len(mixture.names)} sources "
                f"({', '.join(mixture.names)}); give one dataset for each source, in their order"
            )
        assert all(type(dataset) is type(datasets[0]) for dataset in datasets)
        assert all(d.index_split == datasets[0].index_split for d in datasets)
        for name, dataset in zip(mixture.names, datasets, strict=True):
            if len(dataset) < 1:
                raise DataError(
                    f"source {name} ({dataset.dataset_path}): no sample of "
                    f"{config.sequence_length} tokens; give it more text or a smaller seq_length"
                )
        self.datasets = list(datasets)
        self.split = datasets[0].index_split
        self.weights = weights
        self.size = num_samples or size or sum(len(dataset) for dataset in datasets)
        self.config = config
        self.mixture = mixture
        self.order = DrawOrder(config.random_seed, block_size, [1.0] * len(datasets))
        self._id_type = numpy.int16 if len(datasets) < 32767 else numpy.int32
        identifiers = OrderedDict(
            {
                "class": type(self).__name__,
                "datasets": [dataset.unique_identifiers for dataset in datasets],
                "split": self.split.name,
                "sources": mixture.names,
                "size": self.size,
                "block_size": block_size,
            }
        )
        self.unique_description = json.dumps(
            identifiers, indent=4, default=lambda obj: obj.unique_identifiers
        )
        self.unique_description_hash = hashlib.md5(
            self.unique_description.encode(), usedforsecurity=False
        ).hexdigest()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, idx: int) -> dict[str, Any]:
        if not 0 <= idx < self.size:
            raise IndexError(f"sample {idx} of a blend of {self.size} samples")
        draw = self.order.draw(int(idx))
        return self.sample("train", draw.source, draw.ordinal)

    def sample(self, stream: str, source: int, ordinal: int) -> dict[str, Any]:
        """The `ordinal`-th sample that `stream` reads of a source, with its `dataset_id`."""
        dataset = self.datasets[source]
        within = epoch_sample(self.config.random_seed, stream, source, ordinal, len(dataset))
        return {"dataset_id": self._id_type(source), **dataset[within]}

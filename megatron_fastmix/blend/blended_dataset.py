"""`BlendedDataset` whose draws are computed instead of stored, with a mixture that may move."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy
import torch
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.utils import Split, normalize

from megatron_fastmix.blend.options import BlendOptions
from megatron_fastmix.blend.order.draw_order import epoch_sample
from megatron_fastmix.blend.order.shuffled_order import ShuffledOrder
from megatron_fastmix.blend.order.spread_order import MAX_BLOCK_SIZE, SpreadOrder
from megatron_fastmix.errors import DataError
from megatron_fastmix.text_list import listed

logger = logging.getLogger(__name__)

_STATIC = BlendOptions(weighting="sampling")


class WeightHistory(Protocol):
    """What a blend asks of a mixture; `LiveMixture` says what each means."""

    names: list[str]

    @property
    def counter(self) -> Sequence[int]: ...

    def changes(self, since: int = 0) -> list[tuple[int, numpy.ndarray]]: ...

    def loss_weights_at(self, sample: int) -> numpy.ndarray: ...

    def note_drawn(self, sample: int) -> int: ...


class SourceUse(NamedTuple):
    """How a blend uses one source."""

    samples: int
    """Samples in one epoch of the source."""
    asked: int
    """Draws that its weights ask for."""
    draws: int
    """Draws that it gives; fewer than asked where `max_epochs` caps it, more where it takes over
    what another's cap removes."""

    @property
    def epochs(self) -> float:
        """Times that the source is read."""
        return self.draws / self.samples


class FastMixBlendedDataset(BlendedDataset):
    """Drop-in for Megatron-core's `BlendedDataset`: same constructor, attributes and keys.

    Draw i is a pure function of (seed, history of the weights, i): nothing is built, cached or
    kept per sample, and a source that is drawn past its end goes on with its next epoch, in
    another order. Under `weighting: sampling` the draws follow the mixture's history. Under
    `weighting: loss` sources are drawn evenly, and the mixture acts through the loss, whose factor
    for a sample is `mixture.loss_weights[dataset_id]` (sampling by α and weighting by K·α have
    equal expectations).

    Without a mixture it draws by `weights`, as `BlendedDataset` does. Unlike that class it takes
    weights of 0, more than 32,766 datasets (`dataset_id` is then int32, not int16) and blends that
    read a dataset more than once.

    Raises `DataError` where the blend does not have one dataset for each source of the mixture, a
    source has no sample, or `max_epochs` leaves fewer samples than the blend has.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        weights: Sequence[float],
        size: int | None,
        config: Any,
        *,
        mixture: Any = None,
        history: WeightHistory | None = None,
        options: BlendOptions = _STATIC,
    ) -> None:
        """`mixture` has `names` and `loss_weights` (K,); `history`, by default the mixture itself,
        is what draws and folded weights follow."""
        # BlendedDataset.__init__ would build and cache one index entry per sample.
        assert len(datasets) == len(weights)
        types = {type(d) for d in datasets if not getattr(d, "goes_with_text", False)}
        assert len(types) <= 1, f"datasets of several types: {types}"
        assert all(d.index_split == datasets[0].index_split for d in datasets)
        self.datasets = list(datasets)
        self.split = datasets[0].index_split
        self.weights = weights if size is None else normalize(weights)
        self.size = options.num_samples or size
        self.config = config
        self.dataset_index = self.dataset_sample_index = None
        self.mixture = mixture
        self.options = options
        self.names = _names(datasets, mixture)
        self._length = int(sum(weights)) if self.size is None else self.size
        self._sizes = _sizes(self.names, datasets, config)
        self._history = mixture if history is None else history
        self._follows = mixture is not None and options.weighting == "sampling"
        notes = (self._follows or options.fold_loss_mask) and self.split is Split.train
        # The samples before it need no check: they exist, and are noted as drawn.
        self._ready = 0 if notes else self._length
        self._folds = options.fold_loss_mask
        self._capacity = options.capacity(self.names, self._sizes)
        self._version = -1
        self._block_size = options.block_size
        if mixture is None:
            # Without a size one block of all draws, which holds exactly weights[k] samples of each.
            longest = MAX_BLOCK_SIZE if size is None else options.block_size
            self._block_size = max(1, min(self._length, longest))
        self.order = self._make_order()
        id_type = numpy.int16 if len(datasets) < 32767 else numpy.int32
        self._ids = numpy.arange(len(datasets), dtype=id_type)
        identifiers = OrderedDict(
            {
                "class": type(self).__name__,
                "datasets": [dataset.unique_identifiers for dataset in datasets],
                "split": self.split.name,
                "weights": self.weights if mixture is None else options.weighting,
                "sources": self.names,
                "size": self.size,
                "block_size": self._block_size,
            }
        )
        self.unique_description = json.dumps(
            identifiers, indent=4, default=lambda obj: obj.unique_identifiers
        )
        self.unique_description_hash = hashlib.md5(
            self.unique_description.encode(), usedforsecurity=False
        ).hexdigest()
        self._announce_caps()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, idx: int) -> dict[str, Any]:
        index = int(idx)
        if not 0 <= index < self._ready:
            index = self._prepare(index)
        if self._follows and self._history.counter[0] != self._version:
            self._follow()
        source, within = self.order.locate(index)
        sample = {"dataset_id": self._ids[source], **self.datasets[source][within]}
        return self._folded(sample, source, index) if self._folds else sample

    def sample(self, stream: str, source: int, ordinal: int) -> dict[str, Any]:
        """The `ordinal`-th sample that `stream` reads of a source, with its `dataset_id`."""
        within = self.position(stream, source, ordinal)
        return {"dataset_id": self._ids[source], **self.datasets[source][within]}

    def position(self, stream: str, source: int, ordinal: int) -> int:
        """Which sample of a source the `ordinal`-th is that `stream` reads."""
        return epoch_sample(self.config.random_seed, stream, source, ordinal, self._sizes[source])

    @property
    def epoch_sizes(self) -> list[int]:
        """Samples in one epoch of each source, (K,)."""
        return list(self._sizes)

    def source_of(self, index: int) -> int:
        """The source of draw `index`, as `dataset_id` counts; nothing is read or noted as drawn."""
        if self._follows:
            self._follow()
        source: int = self.order.locate(index)[0]
        return source

    def mask_factor(self, index: int) -> float:
        """What the loss mask of draw `index` was multiplied by: K·α, or 1 without
        `fold_loss_mask`."""
        if not self._folds:
            return 1.0
        return float(self._history.loss_weights_at(index)[self.source_of(index)])

    def draws_before(self, index: int) -> dict[str, int]:
        """By source: the samples among the first `index` draws."""
        if self._follows:
            self._follow()
        counts = self.order.counts_before(index)
        return dict(zip(self.names, counts, strict=True))

    def usage(self, until: int | None = None) -> dict[str, SourceUse]:
        """By source: what the first `until` draws (default: all) take of it, under the weights of
        the history so far, and what they would take without `max_epochs`."""
        until = self._length if until is None else until
        if self._follows:
            self._follow()
        capped, free = self.order, self._make_order(capped=False)
        return {
            name: SourceUse(samples, asked, draws)
            for name, samples, asked, draws in zip(
                self.names,
                self._sizes,
                free.counts_before(until),
                capped.counts_before(until),
                strict=True,
            )
        }

    def exhausted(self, until: int | None = None) -> dict[str, int]:
        """The sources that `max_epochs` ends within the first `until` draws (default: all), and
        the draw from which on each gives no sample and the others share its weight."""
        if not isinstance(self.order, SpreadOrder):
            return {}
        if self._follows:
            self._follow()
        ended = self.order.exhausted(self._length if until is None else until)
        return {self.names[source]: draw for source, draw in ended.items()}

    def _make_order(self, capped: bool = True) -> ShuffledOrder | SpreadOrder:
        seed, block_size = self.config.random_seed, self._block_size
        if self.options.order == "shuffled":
            return ShuffledOrder(seed, block_size, self._sizes)
        capacity = self._capacity if capped else None
        if not self._follows:
            even = [1.0] * len(self.datasets)
            weights = self.weights if self.mixture is None else even
            return SpreadOrder(seed, block_size, weights, self._sizes, capacity)
        version = self._history.counter[0]
        (_, first), *changes = self._history.changes()
        order = SpreadOrder(seed, block_size, first, self._sizes, capacity)
        for at, weights in changes:
            order.change(weights, at)
        if capped:
            self._version = version
        return order

    def _follow(self) -> None:
        """Brings the order up to the newest weights."""
        version = self._history.counter[0]
        if version == self._version:
            return
        assert isinstance(self.order, SpreadOrder)
        if version >> 32 != self._version >> 32:  # another history, not a longer one
            self.order = self._make_order()
            return
        for at, weights in self._history.changes(since=self.order.changes):
            self.order.change(weights, at)
        # The history may have grown meanwhile; what it has now is looked at in the next draw.
        self._version = version

    def _prepare(self, index: int) -> int:
        """The sample that `index` means, which is noted as drawn where it matters."""
        sample = index if index >= 0 else index + self._length
        if not 0 <= sample < self._length:
            raise IndexError(f"sample {index} of a blend of {self._length} samples")
        if sample >= self._ready:
            self._ready = min(self._history.note_drawn(sample), self._length)
        return sample

    def _folded(self, sample: dict[str, Any], source: int, index: int) -> dict[str, Any]:
        mask = sample.get("loss_mask")
        if not isinstance(mask, torch.Tensor) or not mask.is_floating_point():
            found = "no loss_mask" if mask is None else f"a loss_mask of {mask.dtype}"
            raise DataError(
                f"fold_loss_mask: source {self.names[source]} ({type(self.datasets[source])}) has "
                f"{found}, which can hold no weight; use weighting sampling"
            )
        factor = float(self._history.loss_weights_at(index)[source])
        return sample | {"loss_mask": mask * factor}

    def _announce_caps(self) -> None:
        """Logs what `max_epochs` takes away. Raises `DataError` where too little is left for the
        run, but for weights that may still change."""
        if not any(limit is not None for limit in self._capacity):
            return
        try:
            usage = self.usage()
        except DataError as error:
            if not self._follows:
                raise
            logger.warning("%s", error)
            return
        over = [
            (name, use, limit)
            for (name, use), limit in zip(usage.items(), self._capacity, strict=True)
            if limit is not None and use.asked > limit
        ]
        if over:
            parts = [
                f"{name} {use.asked / use.samples:.2f} (cap {limit / use.samples:g})"
                for name, use, limit in over
            ]
            excess = sum(use.asked - limit for _, use, limit in over)
            logger.warning(
                "max_epochs: the weights ask for more epochs than allowed of %s; the excess of "
                "%d samples (%.2f%%) goes to the other sources in proportion to their weights",
                listed(parts, 20),
                excess,
                100 * excess / self._length,
            )


def _names(datasets: Sequence[Any], mixture: Any) -> list[str]:
    if mixture is None:
        return [str(dataset.dataset_path) for dataset in datasets]
    if len(datasets) != len(mixture.names):
        raise DataError(
            f"the blend has {len(datasets)} datasets, the mixture {len(mixture.names)} sources "
            f"({', '.join(mixture.names)}); give one dataset for each source, in their order"
        )
    return list(mixture.names)


def _sizes(names: Sequence[str], datasets: Sequence[Any], config: Any) -> list[int]:
    sizes = [len(dataset) for dataset in datasets]
    for name, size, dataset in zip(names, sizes, datasets, strict=True):
        if size < 1:
            raise DataError(
                f"source {name} ({dataset.dataset_path}): no sample of {config.sequence_length} "
                "tokens; give it more text or a smaller seq_length"
            )
    return sizes

"""What a row trains on and is evaluated on, as a user's training run would read it.

Text comes in samples of the sequence length through Megatron-core's own blend. Answer-only rows
come each as a sample; a row of source k has mean_k tokens in the loss, so that rows are drawn by
shares ∝ weight_k / mean_k, which brings tokens in the loss by `weight`. Under a schedule the
package's own blend draws by the weights in force.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.batch.packing import collate
from megatron_fastmix.corpus.indexed.answer_rows import is_answer_only
from megatron_fastmix.corpus.tokenizers.registry import Tokenizer
from megatron_fastmix.lab.comparison.config import DATA_FLAGS, Dataset, Setting
from megatron_fastmix.lab.comparison.rows import Task

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Megatron lacks for GPUs is no news to a comparison
    from megatron_fastmix.batch.sources import build_datasets, join_shards
    from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset
    from megatron_fastmix.blend.live_mixture import LiveMixture
    from megatron_fastmix.blend.options import BlendOptions
    from megatron_fastmix.blend.shards import Shards
    from megatron_fastmix.blend.weight_schedule import Change, WeightSchedule

EVALUATION_SEED = 0
"""Every row is evaluated on the same samples."""


class RowData:
    """Batches of one row. Raises `DataError` for a source without a sample."""

    def __init__(
        self, setting: Setting, task: Task, tokenizer: Tokenizer, cache: Path, device: torch.device
    ) -> None:
        """`cache` is an empty folder of its own for Megatron's indices."""
        self.setting, self.tokenizer, self.cache, self.device = setting, tokenizer, cache, device
        named = {source.name: source for source in setting.sources}
        if task.candidate.schedule is not None:
            self._blend = self._scheduled(task.candidate.schedule, task.seed, named)
            return
        weights = task.candidate.weights
        used, shares = [named[name] for name in weights], [float(t) for t in weights.values()]
        samples = self._samples
        if not any(is_answer_only(prefix) for source in used for prefix in source.shards):
            parts: dict[str, float] = {}
            for source, share in zip(used, shares, strict=True):
                for prefix, tokens in source.shards.items():
                    # Two sources may share one.
                    parts[prefix] = parts.get(prefix, 0.0) + share * (tokens / source.tokens)
            blends = [(list(parts), list(parts.values())), None, None]
            self._blend = self._build(task.seed, blends, [samples, 0, 0])[0]
            return
        # Megatron's blend indexes more rows than a dataset has; ours goes on with another epoch.
        sources = self._epochs(task.seed, used)
        rows = [
            share / self._loss_tokens(source) for share, source in zip(shares, sources, strict=True)
        ]
        self._blend = FastMixBlendedDataset(sources, rows, samples, sources[0].config)

    @property
    def _samples(self) -> int:
        """Samples of the whole training."""
        return self.setting.training.train_iters * self.setting.training.global_batch_size

    def _scheduled(self, schedule: WeightSchedule, seed: int, named: dict[str, Dataset]) -> Any:
        """The blend that follows `schedule`, whose weights are shares of tokens in the loss."""
        sources = self._epochs(seed, [named[name] for name in schedule.names])
        counts = dict(zip(schedule.names, map(self._loss_tokens, sources), strict=True))
        changes = tuple(
            Change(
                at_sample=change.at_sample,
                weights={name: share / counts[name] for name, share in change.weights.items()},
            )
            for change in schedule.changes
        )
        size = self.setting.training.global_batch_size
        mixture = LiveMixture.from_schedule(WeightSchedule(changes=changes), block_size=size)
        return FastMixBlendedDataset(
            sources,
            [1.0] * len(sources),
            self._samples,
            sources[0].config,
            mixture=mixture,
            options=BlendOptions(weighting="sampling", block_size=size),
        )

    def _epochs(self, seed: int, sources: Sequence[Dataset]) -> list[Any]:
        """One epoch of each source."""
        return join_shards(
            {
                source.name: [
                    self._build(seed, [([path], None), None, None], [None] * 3)[0]
                    for path in source.shards
                ]
                for source in sources
            }
        )

    def _loss_tokens(self, source: Any) -> float:
        """Mean tokens in the loss of one of its samples; a sample of text is seq_length of them."""
        if isinstance(source, Shards):
            source = source.datasets[0]
        return float(getattr(source, "tokens_per_sample", self.setting.seq_length))

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of an optimizer step (from 0)."""
        size = self.setting.training.global_batch_size
        return list(self._batches(self._blend, range(step * size, (step + 1) * size)))

    def test(self, test: Dataset) -> Iterator[Batch]:
        """The first samples of a test set, in one fixed order; of several datasets as many of each
        as its size asks for."""
        parts = [
            self._build(EVALUATION_SEED, [None, ([path], None), None], [None] * 3)[1]
            for path in test.shards  # one epoch of each
        ]
        (dataset,) = join_shards({test.name: parts})
        count = min(len(dataset), self.setting.eval_samples or len(dataset))
        spread = len(dataset) if len(parts) > 1 else count
        return self._batches(dataset, [i * spread // count for i in range(count)])

    def _batches(self, dataset: Any, indices: Sequence[int]) -> Iterator[Batch]:
        size = self.setting.training.micro_batch_size
        for first in range(0, len(indices), size):
            samples = [dataset[i] for i in indices[first : first + size]]
            tensors = collate(samples, self.setting.seq_length, packing=False)
            yield Batch.of_sources(
                np.zeros(len(samples), dtype=int),
                **{key: tensor.to(self.device) for key, tensor in tensors.items()},
            )

    def _build(self, seed: int, blends: Any, sizes: Any) -> list[Any]:
        return build_datasets(
            blends,
            sizes,
            seq_length=self.setting.seq_length,
            seed=seed,
            tokenizer=self.tokenizer,
            cache_path=str(self.cache),
            **{flag: getattr(self.setting, flag) for flag in DATA_FLAGS},
        )

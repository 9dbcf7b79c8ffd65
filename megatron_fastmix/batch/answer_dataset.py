"""An answer-only dataset for Megatron-core's builder: a row is a sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split

from megatron_fastmix.corpus.indexed.answer_rows import count_answer_rows, kept_rows
from megatron_fastmix.dataset_paths import loss_mask_prefix


class AnswerOnlyDataset(MegatronDataset):
    """Rows of prompt and answer, at most `sequence_length` tokens each, unpadded.

    Rows whose answer lies beyond `sequence_length` have nothing to learn and are left out.
    `tokens_per_sample` is the mean number of answer tokens of a row, of the `rows` that have any,
    which have `answer_tokens` together; `share_mean` makes it that of a source of several datasets.
    """

    goes_with_text = True
    """Its samples are collated with those of text: a blend may hold both."""

    def __init__(
        self,
        dataset: Any,
        dataset_path: str | None,
        indices: np.ndarray,
        num_samples: int | None,
        index_split: Split,
        config: Any,
    ) -> None:
        assert dataset_path is not None
        length = config.sequence_length
        counts = count_answer_rows(dataset_path, length)
        # Beside the folder of Megatron's indices, which is named after the content of all datasets.
        kept = kept_rows(dataset_path, length, Path(config.path_to_cache).parent)
        if len(indices) < counts.rows:  # a split of them
            kept = np.intersect1d(indices, kept)
        elif not config.mmap_bin_files:  # few open files are wanted, and a map is one
            kept = np.array(kept)
        super().__init__(dataset, dataset_path, kept, num_samples, index_split, config)
        self.mask = IndexedDataset(loss_mask_prefix(dataset_path), mmap=config.mmap_bin_files)
        self.answer_tokens = counts.answer_tokens
        self.rows = counts.kept_rows
        self.tokens_per_sample = counts.mean_answer_tokens

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: Any) -> int:
        return len(low_level_dataset.sequence_lengths)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: Any) -> Any:
        return IndexedDataset(dataset_path, mmap=config.mmap_bin_files)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """tokens and labels, int64, and loss_mask, float, all of shape (row's tokens − 1,); and
        tokens_per_sample."""
        row, end = int(self.indices[idx]), self.config.sequence_length + 1
        tokens = torch.from_numpy(self.dataset[row][:end].astype(np.int64))
        mask = torch.from_numpy(self.mask[row][1:end].astype(np.float32))
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "loss_mask": mask,
            "tokens_per_sample": self.tokens_per_sample,
        }


def share_mean(datasets: Sequence[AnswerOnlyDataset]) -> None:
    """Makes `tokens_per_sample` of the datasets of one source the mean over all their rows: what a
    row's loss is divided by must not depend on which shard it lies in."""
    mean = sum(d.answer_tokens for d in datasets) / sum(d.rows for d in datasets)
    for dataset in datasets:
        dataset.tokens_per_sample = mean

"""The sources' blend and the targets, through Megatron-core's own dataset builder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.utils import Split

from megatron_fastmix import blend
from megatron_fastmix.batch.answer_dataset import AnswerOnlyDataset, share_mean
from megatron_fastmix.batch.document_resets import DocumentsApart, DocumentsApartGPTDataset
from megatron_fastmix.batch.index_cache import GPTDataset, folder_aside, index_cache
from megatron_fastmix.batch.index_progress import IndexProgress
from megatron_fastmix.batch.open_files import is_lean
from megatron_fastmix.batch.targets import ValidationTarget
from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset
from megatron_fastmix.blend.shards import Shards, one_each
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus.indexed.answer_rows import is_answer_only
from megatron_fastmix.errors import DataError
from megatron_fastmix.mixture.mixture import Mixture


def build_source_blend(
    config: SearchConfig,
    mixture: Mixture,
    tokenizer: Any,
    cache_path: str,
    shares: Mapping[str, float] | None = None,
) -> FastMixBlendedDataset:
    """The blend of all sources, one epoch of each indexed. Every rank must call.

    `shares` are the parts of the sources' samples that it offers; default: all.
    """
    batch_size, weighting = config.training.global_batch_size, config.mixture.weighting
    sampling = weighting == "sampling"
    prefixes = {source.name: source.prefixes() for source in config.sources}
    lean = _is_lean(config)
    several = any(len(each) > 1 for each in prefixes.values())
    with blend.install(
        mixture,
        weighting=weighting,
        block_size=batch_size,
        num_samples=config.training.train_iters * batch_size,
        samples_per_update=config.mixture.inner_steps * batch_size if sampling else None,
        order="spread" if sampling else "shuffled",
        # Without shards the order of the datasets tells the sources.
        sources=prefixes if several else None,
        shares=shares,
    ):
        paths = [path for each in prefixes.values() for path in each]
        blended: FastMixBlendedDataset = _one_epoch(
            config, tokenizer, cache_path, paths, Split.train, lean, prefixes
        )
    for dataset in blended.datasets:
        _share_mean(dataset if shares is None else dataset.dataset)
    return blended


def build_targets(config: SearchConfig, tokenizer: Any, cache_path: str) -> list[ValidationTarget]:
    """One target for each entry of the configuration. Every rank must call."""
    targets, lean = [], _is_lean(config)
    for target in config.targets:
        prefixes = target.prefixes()
        parts = [
            _one_epoch(config, tokenizer, cache_path, [prefix], Split.valid, lean)
            for prefix in prefixes
        ]
        # Megatron's own blend of datasets without weights would index all their samples.
        (dataset,) = join_shards({target.name: parts})
        if len(dataset) < 1:
            raise DataError(
                f"target {target.name} ({prefixes[0]}): no sample of {config.data.seq_length} "
                "tokens; give it more text or a smaller data.seq_length"
            )
        targets.append(ValidationTarget(name=target.name, dataset=dataset, seed=config.seed))
    return targets


def join_shards(sources: Mapping[str, Sequence[Any]]) -> list[Any]:
    """One dataset for each source or target, from the datasets of each, without a blend."""
    joined = one_each(sources)
    for dataset in joined:
        _share_mean(dataset)
    return joined


def _share_mean(dataset: Any) -> None:
    if isinstance(dataset, Shards) and isinstance(dataset.datasets[0], AnswerOnlyDataset):
        share_mean(dataset.datasets)


def build_datasets(
    blends: Sequence[tuple[list[str], list[float] | None] | None],
    sizes: Sequence[int | None],
    *,
    seq_length: int,
    seed: int,
    tokenizer: Any,
    cache_path: str,
    lean: bool = False,
    sources: Mapping[str, Sequence[str]] | None = None,
    eod_mask_loss: bool = False,
    reset_position_ids: bool = False,
    reset_attention_mask: bool = False,
) -> list[Any]:
    """The datasets or blends of the train, validation and test split, by Megatron-core's builder.

    `blends` are prefixes and their weights, or None, by split, text and answer-only rows; `sizes`
    samples, where None builds exactly one epoch. Indices are cached in a folder of `cache_path`
    that is named after the datasets' content, as Megatron knows them by their paths alone. With
    `lean` they keep few files open; see `open_files`. `sources` are the prefixes by source, of
    which is said how far their indexing is. Every rank must call.
    """
    prefixes = [prefix for blend in blends if blend for prefix in blend[0]]
    folder = index_cache(cache_path, prefixes)
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=seq_length,
        blend_per_split=blends,
        path_to_cache=str(folder),
        tokenizer=tokenizer,
        reset_position_ids=reset_position_ids,
        reset_attention_mask=reset_attention_mask,
        eod_mask_loss=eod_mask_loss,
        create_attention_mask=False,
        mmap_bin_files=not lean,
    )
    text = LeanGPTDataset if lean else GPTDataset
    if reset_position_ids or reset_attention_mask:
        text = DocumentsApartLeanGPTDataset if lean else DocumentsApartGPTDataset
    answers = {prefix: is_answer_only(prefix) for prefix in prefixes}
    progress = IndexProgress(len(prefixes), sources)
    counted = {
        True: progress.counted(AnswerOnlyDataset),
        False: progress.counted(text),
    }

    first: Any = counted[answers[prefixes[0]]]

    class OfItsKind(first):  # type: ignore[misc]
        """Answer-only rows or text, as the prefix says."""

        def __new__(cls, dataset: Any, dataset_path: str, *others: Any) -> Any:
            # No instance of this class, so that Python calls no other `__init__`.
            return counted[answers[dataset_path]](dataset, dataset_path, *others)

    several = len(set(answers.values())) > 1
    dataset_class = OfItsKind if several else first
    try:
        return BlendedMegatronDatasetBuilder(dataset_class, sizes, lambda: True, config).build()
    finally:
        shutil.rmtree(folder_aside(folder), ignore_errors=True)


class LeanGPTDataset(GPTDataset):
    """Megatron's, with the order of its samples in memory: a mapped array is an open file."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        for name in ("document_index", "sample_index", "shuffle_index"):
            setattr(self, name, np.array(getattr(self, name)))


class DocumentsApartLeanGPTDataset(DocumentsApart, LeanGPTDataset):
    """The same with the documents of a sample apart."""


def _is_lean(config: SearchConfig) -> bool:
    return is_lean(len(config.prefixes()))


def _one_epoch(
    config: SearchConfig,
    tokenizer: Any,
    cache_path: str,
    paths: list[str],
    split: Split,
    lean: bool,
    sources: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """draw_order makes the further epochs."""
    return build_datasets(
        [(paths, None) if split is each else None for each in Split],
        [None, None, None],
        seq_length=config.data.seq_length,
        seed=config.seed,
        tokenizer=tokenizer,
        cache_path=cache_path,
        lean=lean,
        sources=sources,
        eod_mask_loss=config.data.eod_mask_loss,
        reset_position_ids=config.data.reset_position_ids,
        reset_attention_mask=config.data.reset_attention_mask,
    )[split.value]

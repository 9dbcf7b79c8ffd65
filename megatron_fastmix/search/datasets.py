"""The sources' blend and the targets, through Megatron-core's own dataset builder."""

from __future__ import annotations

from typing import Any

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import Split

from megatron_fastmix import blend
from megatron_fastmix.answers.dataset import AnswerOnlyDataset
from megatron_fastmix.answers.rows import is_answer_only
from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import DataError
from megatron_fastmix.mixture import Mixture
from megatron_fastmix.targets.validation_split import ValidationTarget


def build_source_blend(
    config: SearchConfig, mixture: Mixture, tokenizer: Any, cache_path: str
) -> FastMixBlendedDataset:
    """The blend of all sources, one epoch of each indexed. Every rank must call."""
    training = config.training
    paths = [source.path for source in config.sources]
    with blend.install(
        mixture,
        block_size=training.global_batch_size,
        num_samples=training.train_iters * training.global_batch_size,
        order="shuffled",
    ):
        return _build(config, tokenizer, cache_path, paths, Split.train)


def build_targets(config: SearchConfig, tokenizer: Any, cache_path: str) -> list[ValidationTarget]:
    """One target for each entry of the configuration. Every rank must call."""
    targets = []
    for target in config.targets:
        dataset = _build(config, tokenizer, cache_path, [target.path], Split.valid)
        if len(dataset) < 1:
            raise DataError(
                f"target {target.name} ({target.path}): no sample of {config.data.seq_length} "
                "tokens; give it more text or a smaller data.seq_length"
            )
        targets.append(ValidationTarget(name=target.name, dataset=dataset, seed=config.seed))
    return targets


def _build(
    config: SearchConfig, tokenizer: Any, cache_path: str, paths: list[str], split: Split
) -> Any:
    blends = [(paths, None) if split is each else None for each in Split]
    dataset_config = GPTDatasetConfig(
        random_seed=config.seed,
        sequence_length=config.data.seq_length,
        blend_per_split=blends,
        path_to_cache=cache_path,
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    dataset_class = AnswerOnlyDataset if is_answer_only(paths[0]) else GPTDataset
    # Sizes of None build exactly one epoch; draw_order makes the further ones.
    sizes = [None, None, None]
    built = BlendedMegatronDatasetBuilder(
        dataset_class, sizes, lambda: True, dataset_config
    ).build()
    return built[split.value]

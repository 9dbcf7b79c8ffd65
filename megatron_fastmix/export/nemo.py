"""NVIDIA's frameworks above Megatron-core: Megatron-Bridge, NeMo 2 and NeMo 1.

Sources: Megatron-Bridge `GPTDatasetConfig` (fields of Megatron-core's
`BlendedMegatronDatasetConfig`), its `DirectHFSFTDatasetConfig` (`source`, `source_weights`:
`blend_sft_rows` of `bridge/data/sources/hf.py`) and its `GPTSFTDatasetConfig`
(`per_split_data_source_manifest_path`), both after release 0.6; NeMo 2
`nemo/collections/llm/gpt/data/pre_training.py`, `PreTrainingDataModule(paths=...)`; NeMo 1
`model.data.data_prefix`.
"""

from __future__ import annotations

import json

import yaml

from megatron_fastmix.export.blend import Blend
from megatron_fastmix.export.megatron import by_split, pairs


def megatron_bridge(blend: Blend) -> str:
    """The `dataset` section of a YAML override: train from the sources, valid from the targets.

    `blend` and `split` are null, as Megatron-core requires beside `blend_per_split`.
    """
    per_split = [
        [[entry.path for entry in entries], [float(entry.weight) for entry in entries]]
        for entries in (blend.sources, blend.targets)
    ]
    if len(blend.targets) == 1:
        per_split[1][1] = None
    dataset = {"blend": None, "split": None, "blend_per_split": [*per_split, None]}
    return yaml.safe_dump({"dataset": dataset}, sort_keys=False, allow_unicode=True)


def megatron_bridge_sources(blend: Blend) -> str:
    """The `dataset` section of a fine-tuning YAML: sources, and how often each is read."""
    sources = [{"path_or_dataset": entry.path} for entry in blend.sources]
    section = {"source": sources, "source_weights": [*map(blend.repetitions, blend.sources)]}
    return yaml.safe_dump({"dataset": section}, sort_keys=False, allow_unicode=True)


def manifest(blend: Blend) -> str:
    """JSON with weights and paths by split, as Megatron-Bridge's fine-tuning reads its sources."""
    return by_split(pairs(blend.sources), pairs(blend.targets))


def nemo_2(blend: Blend) -> str:
    """The argument `paths=[WEIGHT, PREFIX, ...]` in Python."""
    return f"paths={json.dumps(pairs(blend.sources), ensure_ascii=False)}\n"


def nemo_1(blend: Blend) -> str:
    """The YAML list `model.data.data_prefix`, of numbers and prefixes in turn."""
    weights_and_prefixes: list[float | str] = list(pairs(blend.sources))
    weights_and_prefixes[::2] = [float(entry.weight) for entry in blend.sources]
    section = {"model": {"data": {"data_prefix": weights_and_prefixes}}}
    return yaml.safe_dump(section, sort_keys=False, allow_unicode=True)

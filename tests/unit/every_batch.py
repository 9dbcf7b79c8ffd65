"""The batches of every role that a search of text makes, of documents that a test gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.batch.sources import build_source_blend, build_targets
from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.corpus.tokenizers.registry import Tokenizer
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.parallel.groups import DataParallelGroup
from tests.conftest import write_dataset


def every_batch(
    values: dict,
    folder: Path,
    tokenizer: Tokenizer,
    documents: Callable[[int], list[list[int]]],
) -> list[Batch]:
    """Of the first training step, probe and objective; `documents` gives those of the dataset of
    each source and target, by their number. The datasets are written to `folder`."""
    for number, owner in enumerate([*values["sources"], *values["targets"]]):
        owner["path"] = str(folder / owner["name"])
        write_dataset(folder / owner["name"], documents(number), tokenizer.vocab_size)
    config: SearchConfig = strict_yaml.from_dict(SearchConfig, values)
    cache = str(folder / "cache")
    blend = build_source_blend(
        config, Mixture(config.source_names, config.mixture), tokenizer, cache
    )
    batches = Batches(config, blend, build_targets(config, tokenizer, cache), DataParallelGroup())
    alpha = np.full(len(config.sources), 1 / len(config.sources))
    read = [batches.training(0, 0), *batches.probe(0, alpha)]
    ones = np.ones(len(config.targets))
    return read + [b for term in batches.objective(0, alpha, ones) for b, _ in term]

"""Everything that can be known to be wrong before a rank starts. Imports neither torch nor
Megatron, so that the command line answers at once."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_fastmix.config import SearchConfig, SourceConfig, TargetConfig
from megatron_fastmix.corpus.indexed_files import check_vocabulary, inspect_indexed_dataset
from megatron_fastmix.corpus.manifest import check_same_tokenizer
from megatron_fastmix.corpus.tokenizers import Tokenizer, load_tokenizer
from megatron_fastmix.errors import DataError


@dataclass(frozen=True, kw_only=True)
class DatasetSize:
    """Size of a source or target."""

    tokens: int
    documents: int


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a search, found good."""

    tokenizer: Tokenizer
    sources: list[DatasetSize]
    targets: list[DatasetSize]


def check_inputs(config: SearchConfig, ranks: int) -> Inputs:
    """Opens the tokenizer and every dataset. Raises `ConfigError` or `DataError`."""
    config.accumulation_steps(config.data_parallel_size(ranks))
    tokenizer = load_tokenizer(config.tokenizer.tokenizer_type, config.tokenizer.tokenizer_model)
    datasets: list[SourceConfig | TargetConfig] = [*config.sources, *config.targets]
    sizes = []
    for dataset in datasets:
        summary = inspect_indexed_dataset(dataset.path)
        # Megatron's sample has one token more than seq_length, the last label.
        if summary.tokens < config.data.seq_length + 1:
            raise DataError(
                f"{dataset.name} ({dataset.path}): found {summary.tokens} tokens, fewer than one "
                f"sample of {config.data.seq_length + 1}; give it more text, leave it out, or "
                "lower data.seq_length"
            )
        check_vocabulary(dataset.path, tokenizer.vocab_size)
        sizes.append(DatasetSize(tokens=summary.tokens, documents=summary.documents))
    check_same_tokenizer({d.name: d.path for d in datasets}, tokenizer.sha256)
    count = len(config.sources)
    return Inputs(tokenizer=tokenizer, sources=sizes[:count], targets=sizes[count:])

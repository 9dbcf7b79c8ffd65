"""Everything that can be known to be wrong before a rank starts. Imports neither torch nor
Megatron, so that the command line answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from megatron_fastmix.config import DataConfig, SearchConfig, SourceConfig, TargetConfig
from megatron_fastmix.corpus.indexed.answer_rows import (
    AnswerCounts,
    check_mask,
    check_one_kind,
    count_answer_rows,
    is_answer_only,
)
from megatron_fastmix.corpus.indexed.indexed_files import (
    check_vocabulary,
    index_counts,
    inspect_indexed_dataset,
)
from megatron_fastmix.corpus.indexed.manifest import check_same_tokenizer
from megatron_fastmix.corpus.tokenizers.registry import Tokenizer, load_tokenizer
from megatron_fastmix.deepspeed_engine.settings import zero_config
from megatron_fastmix.errors import DataError
from megatron_fastmix.proxy.starting_point import check_starting_point
from megatron_fastmix.result.sizes import Shard, Size, total_size
from megatron_fastmix.run.trackers import check_trackers

VOCABULARY_TOKENS = 500_000_000
"""Ids that the check of the vocabulary looks at, of all datasets together: seconds, whatever their
number and size."""


@dataclass(frozen=True, kw_only=True)
class DatasetSize:
    """Size of one dataset."""

    path: str
    """Its prefix."""
    tokens: int
    documents: int
    answer_rows: AnswerCounts | None = None
    """Rows and their answer tokens where the dataset is answer-only."""

    @property
    def shard(self) -> Shard:
        """The size in every unit."""
        rows = self.answer_rows
        if rows is None:
            return Shard(
                path=self.path, tokens=self.tokens, loss_tokens=self.tokens, rows=self.documents
            )
        return Shard(
            path=self.path,
            tokens=self.tokens,
            loss_tokens=rows.answer_tokens,
            rows=rows.kept_rows,
        )


@dataclass(frozen=True, kw_only=True)
class SourceSize:
    """Size of a source or target: of all its datasets together."""

    datasets: tuple[DatasetSize, ...]

    @property
    def tokens(self) -> int:
        return sum(dataset.tokens for dataset in self.datasets)

    @property
    def documents(self) -> int:
        return sum(dataset.documents for dataset in self.datasets)

    @property
    def answer_only(self) -> bool:
        """Whether its rows are answer-only."""
        return self.datasets[0].answer_rows is not None

    def tokens_per_sample(self, seq_length: int) -> float:
        """As a forward pass reads them: `seq_length`, or the mean of answer-only rows."""
        if not self.answer_only:
            return seq_length
        rows = [d.answer_rows for d in self.datasets if d.answer_rows is not None]
        return float(sum(each.tokens for each in rows)) / sum(each.rows for each in rows)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The sizes of its datasets in every unit."""
        return tuple(dataset.shard for dataset in self.datasets)

    @property
    def size(self) -> Size:
        """In every unit."""
        return total_size(self.shards)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a search, found good."""

    tokenizer: Tokenizer
    sources: list[SourceSize]
    targets: list[SourceSize]

    def tokens_of_samples(self, seq_length: int) -> np.ndarray:
        """Tokens of a sample of each source, (K,); of answer-only rows their mean."""
        return np.array([source.tokens_per_sample(seq_length) for source in self.sources])

    def tokens_per_sample(self, seq_length: int) -> float:
        """Tokens of a sample, averaged over the sources as they are drawn evenly."""
        return float(self.tokens_of_samples(seq_length).mean())

    def tokens_per_target_sample(self, seq_length: int) -> float:
        """Tokens of a sample, averaged over the targets, of which as many are taken."""
        return float(np.mean([target.tokens_per_sample(seq_length) for target in self.targets]))


def check_inputs(config: SearchConfig, ranks: int, *, vocabulary: bool = True) -> Inputs:
    """Opens the tokenizer and every dataset. Raises `ConfigError` or `DataError`.

    `vocabulary` False leaves out the look at the ids, at each index as a whole and at the
    manifests, which another rank of this host takes.
    """
    zero_config(config, config.data_parallel_size(ranks))
    check_trackers(config.output)
    tokenizer = load_tokenizer(**vars(config.tokenizer))
    known_ids = check_starting_point(
        config.proxy, config.tokenizer, tokenizer, config.data.seq_length
    )
    owners: list[SourceConfig | TargetConfig] = [*config.sources, *config.targets]
    paths = [owner.prefixes() for owner in owners]
    ids = VOCABULARY_TOKENS // sum(map(len, paths)) if vocabulary else 0
    sizes = []
    for owner, each in zip(owners, paths, strict=True):
        datasets = [_check_dataset(owner, path, config, known_ids, ids) for path in each]
        check_one_kind(owner.name, {d.path: d.answer_rows is not None for d in datasets})
        sizes.append(SourceSize(datasets=tuple(datasets)))
    prefixes: dict[str, str | Path] = {}
    for owner, size in zip(owners, sizes, strict=True):
        several = len(size.datasets) > 1
        for dataset in size.datasets:
            prefixes[f"{owner.name} ({dataset.path})" if several else owner.name] = dataset.path
    if vocabulary:
        check_same_tokenizer(prefixes, tokenizer.sha256)
    count = len(config.sources)
    return Inputs(tokenizer=tokenizer, sources=sizes[:count], targets=sizes[count:])


@dataclass(frozen=True, kw_only=True)
class _AssumedTokenizer:
    """What arithmetic needs of a tokenizer."""

    vocab_size: int


def assumed_inputs(config: SearchConfig, tokens: int, vocab_size: int) -> Inputs:
    """Inputs on paper, of data that are not there yet: `tokens` in every source, text."""
    size = SourceSize(datasets=(DatasetSize(path="", tokens=tokens, documents=0),))
    return Inputs(
        tokenizer=cast(Tokenizer, _AssumedTokenizer(vocab_size=vocab_size)),
        sources=[size] * len(config.sources),
        targets=[size] * len(config.targets),
    )


def _check_dataset(
    owner: SourceConfig | TargetConfig,
    prefix: str,
    config: SearchConfig,
    known_ids: int,
    ids: int,
) -> DatasetSize:
    """One dataset of a source or target, of which about `ids` ids are looked at, each to be below
    `known_ids`; of 0 neither they nor its index."""
    if ids:
        summary = inspect_indexed_dataset(prefix)
        tokens, documents = summary.tokens, summary.documents
    else:
        tokens, documents = index_counts(prefix)
    answer_only = check_mask(prefix) if ids else is_answer_only(prefix)
    # Megatron's sample has one token more than seq_length, the last label.
    if not answer_only and tokens < config.data.seq_length + 1:
        raise DataError(
            f"{owner.name} ({prefix}): found {tokens} tokens, fewer than one "
            f"sample of {config.data.seq_length + 1}; give it more text, leave it out, or "
            "lower data.seq_length"
        )
    if ids:
        check_vocabulary(prefix, known_ids, max_tokens=ids)
    return DatasetSize(
        path=prefix,
        tokens=tokens,
        documents=documents,
        answer_rows=_answer_rows(owner, prefix, config.data) if answer_only else None,
    )


def _answer_rows(owner: SourceConfig | TargetConfig, prefix: str, data: DataConfig) -> AnswerCounts:
    rows = count_answer_rows(prefix, data.seq_length)
    if rows.cut_share > data.max_cut_share:
        raise DataError(
            f"{owner.name} ({prefix}): the answers of {rows.cut_share:.1%} of the rows end "
            f"beyond {data.seq_length} tokens; raise data.seq_length, or data.max_cut_share "
            f"{data.max_cut_share:g}"
        )
    return rows

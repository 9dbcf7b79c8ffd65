"""Everything that can be known to be wrong before a rank starts. Imports neither torch nor
Megatron, so that the command line answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from megatron_fastmix.config import DataConfig, SearchConfig, SourceConfig, TargetConfig
from megatron_fastmix.corpus.answer_rows import AnswerRows, is_answer_only, read_answer_rows
from megatron_fastmix.corpus.indexed_files import check_vocabulary, inspect_indexed_dataset
from megatron_fastmix.corpus.manifest import check_same_tokenizer
from megatron_fastmix.corpus.tokenizers import Tokenizer, load_tokenizer
from megatron_fastmix.deepspeed_engine.settings import zero_config
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.proxy.starting_point import check_starting_point
from megatron_fastmix.result.sizes import Size
from megatron_fastmix.run.trackers import check_trackers


@dataclass(frozen=True, kw_only=True)
class DatasetSize:
    """Size of a source or target."""

    tokens: int
    documents: int
    answer_rows: AnswerRows | None = None
    """Rows and their answer tokens where the dataset is answer-only."""

    @property
    def size(self) -> Size:
        """In every unit."""
        rows = self.answer_rows
        if rows is None:
            return Size(tokens=self.tokens, loss_tokens=self.tokens, rows=self.documents)
        return Size(
            tokens=self.tokens,
            loss_tokens=int(rows.answer_tokens.sum()),
            rows=len(rows.kept),
        )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a search, found good."""

    tokenizer: Tokenizer
    sources: list[DatasetSize]
    targets: list[DatasetSize]

    def tokens_per_sample(self, seq_length: int) -> float:
        """Tokens of a sample, averaged over the sources as they are drawn, evenly."""
        rows = [s.answer_rows.tokens.mean() for s in self.sources if s.answer_rows is not None]
        return float(sum(rows)) / len(rows) if rows else float(seq_length)


def check_inputs(config: SearchConfig, ranks: int) -> Inputs:
    """Opens the tokenizer and every dataset. Raises `ConfigError` or `DataError`."""
    zero_config(config, config.data_parallel_size(ranks))
    check_trackers(config.output)
    tokenizer = load_tokenizer(**vars(config.tokenizer))
    check_starting_point(config.proxy, config.tokenizer, tokenizer.vocab_size)
    datasets: list[SourceConfig | TargetConfig] = [*config.sources, *config.targets]
    sizes = []
    for dataset in datasets:
        summary = inspect_indexed_dataset(dataset.path)
        # Megatron's sample has one token more than seq_length, the last label.
        if not is_answer_only(dataset.path) and summary.tokens < config.data.seq_length + 1:
            raise DataError(
                f"{dataset.name} ({dataset.path}): found {summary.tokens} tokens, fewer than one "
                f"sample of {config.data.seq_length + 1}; give it more text, leave it out, or "
                "lower data.seq_length"
            )
        check_vocabulary(dataset.path, tokenizer.vocab_size)
        rows = _answer_rows(dataset, config.data) if is_answer_only(dataset.path) else None
        sizes.append(
            DatasetSize(tokens=summary.tokens, documents=summary.documents, answer_rows=rows)
        )
    check_same_tokenizer({d.name: d.path for d in datasets}, tokenizer.sha256)
    count = len(config.sources)
    _check_one_kind(config.sources, sizes[:count])
    return Inputs(tokenizer=tokenizer, sources=sizes[:count], targets=sizes[count:])


@dataclass(frozen=True, kw_only=True)
class _AssumedTokenizer:
    """What arithmetic needs of a tokenizer."""

    vocab_size: int


def assumed_inputs(config: SearchConfig, tokens: int, vocab_size: int) -> Inputs:
    """Inputs on paper, of data that are not there yet: `tokens` in every dataset, text."""
    size = DatasetSize(tokens=tokens, documents=0)
    return Inputs(
        tokenizer=cast(Tokenizer, _AssumedTokenizer(vocab_size=vocab_size)),
        sources=[size] * len(config.sources),
        targets=[size] * len(config.targets),
    )


def _answer_rows(dataset: SourceConfig | TargetConfig, data: DataConfig) -> AnswerRows:
    rows = read_answer_rows(dataset.path, data.seq_length)
    if rows.cut_share > data.max_cut_share:
        raise DataError(
            f"{dataset.name} ({dataset.path}): the answers of {rows.cut_share:.1%} of the rows end "
            f"beyond {data.seq_length} tokens; raise data.seq_length, or data.max_cut_share "
            f"{data.max_cut_share:g}"
        )
    return rows


def _check_one_kind(sources: Sequence[SourceConfig], sizes: Sequence[DatasetSize]) -> None:
    """All sources are text, or all are answer-only: shares of the two have no common unit."""
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for source, size in zip(sources, sizes, strict=True):
        kinds[size.answer_rows is not None].append(source.name)
    if kinds[True] and kinds[False]:
        raise ConfigError(
            f"sources: {', '.join(kinds[True])} are answer-only, {', '.join(kinds[False])} are "
            "plain text; their weights have no common unit, so search one kind at a time"
        )

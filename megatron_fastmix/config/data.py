"""What a search reads: sources, targets, tokenizer, and how samples are cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_fastmix.config.require import (
    folder_as_in_a_shell,
    path_as_in_a_shell,
    require,
    require_bounds,
    require_name,
    require_path,
    set_paths_as_in_a_shell,
)
from megatron_fastmix.config.tokens import tokens
from megatron_fastmix.dataset_paths import find_datasets


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One training source."""

    name: str
    """Name of the source in every artefact."""
    path: str | tuple[str, ...]
    """Its indexed datasets, one or many (shards): a prefix, as in Megatron's --data-path (PATH.bin
    and PATH.idx); a folder that holds them; a glob such as /data/web_*; or a list of these. One
    epoch of the source is one epoch of each. A source is text or answer-only rows; a search may
    have sources of both kinds, whose weights are then shares of the tokens in the loss."""
    min_weight: float = 0.0
    """The source's share α_k never falls below this."""
    max_weight: float = 1.0
    """The source's share α_k never rises above this."""
    group: str | None = None
    """The group that the source belongs to, such as code; see `groups` and `mixture.learn`."""

    def __post_init__(self) -> None:
        require_name(self.name, "sources: name")
        object.__setattr__(self, "path", _as_written(f"source {self.name}", self.path))
        require_bounds(self.min_weight, self.max_weight, f"source {self.name}")
        if self.group is not None:
            require_name(self.group, f"source {self.name}: group")

    def prefixes(self) -> tuple[str, ...]:
        """Those of its datasets, as they are there now. Raises `DataError` for none."""
        return find_datasets(self.path, f"source {self.name}")


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """One held-out target: data whose loss the mixture is to lower."""

    name: str
    """Name of the target in every artefact."""
    path: str | tuple[str, ...]
    """As a source's. Must not be a source, nor share a dataset with one."""
    weight: float = 1.0
    """ω_v, the target's weight in ℓ; weights are normalised to sum 1. `least_gain` chooses its
    own, and admits no unequal ones."""
    reference_loss: float = 0.0
    """Nats per token that count as good on this target, such as those of a model trained on it
    alone; `worst_case` compares what each target's loss has above it. Under `least_gain`, where
    other methods are compared, the proxy's loss under the initial mixture."""

    def __post_init__(self) -> None:
        require_name(self.name, "targets: name")
        object.__setattr__(self, "path", _as_written(f"target {self.name}", self.path))
        for key in ("weight", "reference_loss"):
            value = getattr(self, key)
            require(value >= 0, f"target {self.name}: {key}", value, "use 0 or more")

    def prefixes(self) -> tuple[str, ...]:
        """Those of its datasets, as they are there now. Raises `DataError` for none."""
        return find_datasets(self.path, f"target {self.name}")


def _as_written(where: str, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """The path as a shell would have it. Raises `ConfigError` for what is none."""
    paths = (path,) if isinstance(path, str) else path
    named = bool(paths) and all(each.strip() for each in paths)
    require(named, f"{where}: path", path, "name one dataset or more")
    for each in paths:
        require_path(each, f"{where}: path")
    return (
        path_as_in_a_shell(path) if isinstance(path, str) else tuple(map(path_as_in_a_shell, path))
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer that wrote every dataset of the run."""

    tokenizer_type: str
    """Megatron's --tokenizer-type; `corpus.tokenizers` lists the ones that it loads."""
    tokenizer_model: str | None = None
    """Megatron's --tokenizer-model: the tokenizer's file, or the folder that holds it; none for
    bytes and numbers."""
    vocab_file: str | None = None
    """Megatron's --vocab-file, for GPT2BPETokenizer; with --merge-file in place of the model."""
    merge_file: str | None = None
    """Megatron's --merge-file, for GPT2BPETokenizer."""
    vocab_size: int | None = None
    """Megatron's --vocab-size: for NullTokenizer the number of ids without the end token, which is
    the next one; for TikTokenizer that of all ids (default 131,072)."""
    eod: int | None = None
    """Id that ends documents, where the data has another than the tokenizer's own; may lie past its
    ids, as the end tokens do that Megatron adds under --legacy-tokenizer."""
    tiktoken_pattern: Literal["v1", "v2"] = "v2"
    """Megatron's --tiktoken-pattern."""
    tiktoken_num_special_tokens: int = 1000
    """Megatron's --tiktoken-num-special-tokens: ids before the first piece."""
    tiktoken_special_tokens: tuple[str, ...] | None = None
    """Megatron's --tiktoken-special-tokens; default: its own seven."""

    def __post_init__(self) -> None:
        set_paths_as_in_a_shell(self, ("tokenizer_model", "vocab_file", "merge_file"))
        for name, least in (("vocab_size", 1), ("eod", 0), ("tiktoken_num_special_tokens", 0)):
            value = getattr(self, name)
            require(
                value is None or least <= value < 1 << 31,
                f"tokenizer.{name}",
                value,
                f"use {least} or more, below 2^31",
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How samples are cut from the sources."""

    seq_length: int = 256
    """Tokens per sample (Megatron's --seq-length)."""
    packing: bool = True
    """Whether rows of answer-only data share a row of seq_length tokens, each attending to itself
    alone; otherwise each has a row of its own, padded to the longest of the micro-batch."""
    max_cut_share: float = 0.05
    """Largest share of a dataset's rows whose answer seq_length may cut."""
    eod_mask_loss: bool = False
    """Megatron's --eod-mask-loss: what follows an end token does not count in the loss of text. Set
    it as the final run does."""
    reset_position_ids: bool = False
    """Megatron's --reset-position-ids: in text, positions begin anew after each end token. Rotary
    positions of Megatron's models do not follow it, there as here."""
    reset_attention_mask: bool = False
    """Megatron's --reset-attention-mask: in text, no token attends beyond an end token. Models of
    Hugging Face take it together with reset_position_ids or not at all."""
    token_budget: int | float | str | None = None
    """D, the tokens of the final run that count in its loss (answer tokens of answer-only sources),
    as 300e9 or 300B. The search then reads only a share of every source, so that it repeats each as
    often as the run will: its own tokens over D where all are text; needs mixture.weighting
    sampling. A search that is made longer (--accept-changes) offers more of every source from then
    on. Epochs, plan and exports count with it too."""
    data_cache_path: str | None = None
    """Where Megatron caches dataset indices; default: `cache` in the run folder. A ~ is as
    in run_dir."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_budget", tokens(self.token_budget, "data.token_budget"))
        if self.data_cache_path is not None:
            cache = folder_as_in_a_shell(self.data_cache_path, "data.data_cache_path")
            object.__setattr__(self, "data_cache_path", cache)
        require(self.seq_length >= 2, "data.seq_length", self.seq_length, "use at least 2")
        require(
            0 <= self.max_cut_share <= 1,
            "data.max_cut_share",
            self.max_cut_share,
            "use a share from 0 to 1",
        )

    @property
    def budget(self) -> int | None:
        """`token_budget` as a number."""
        return tokens(self.token_budget, "data.token_budget")

"""Megatron's flags that name a tokenizer, for the verbs that take one."""

from __future__ import annotations

import argparse
from typing import Any

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.tokenizers.registry import TOKENIZER_TYPES
from megatron_fastmix.corpus.tokenizers.tiktoken_tokenizer import PATTERNS, SPECIAL_TOKENS


def add_tokenizer_arguments(parser: argparse.ArgumentParser, purpose: str = "") -> None:
    """`purpose` stands behind the explanation of --tokenizer-type."""
    group = parser.add_argument_group("tokenizer")
    group.add_argument("--tokenizer-type", help=f"one of {', '.join(TOKENIZER_TYPES)}{purpose}")
    group.add_argument("--tokenizer-model", help="file of the tokenizer, or its folder")
    group.add_argument("--vocab-file", help="for GPT2BPETokenizer, vocab.json")
    group.add_argument("--merge-file", help="for GPT2BPETokenizer, merges.txt")
    group.add_argument(
        "--vocab-size",
        type=int,
        help="ids of NullTokenizer without the end token, or all of TikTokenizer",
    )
    group.add_argument(
        "--eod", type=int, help="id that ends documents, where it is not the tokenizer's own"
    )
    group.add_argument(
        "--tiktoken-pattern",
        choices=sorted(PATTERNS),
        default="v2",
        help="for TikTokenizer: how text is cut before its pieces are looked up (default v2)",
    )
    group.add_argument(
        "--tiktoken-num-special-tokens",
        type=int,
        default=1000,
        metavar="N",
        help="for TikTokenizer: ids before those of the file, special tokens and then fillers "
        "(default 1000)",
    )
    group.add_argument(
        "--tiktoken-special-tokens",
        nargs="+",
        action="extend",
        metavar="TOKEN",
        help=f"for TikTokenizer: the first ids (default {' '.join(SPECIAL_TOKENS)})",
    )


def tokenizer_config(args: argparse.Namespace) -> TokenizerConfig:
    """The tokenizer that parsed arguments mean. Raises `ConfigError`."""
    values: dict[str, Any] = {name: getattr(args, name) for name in TokenizerConfig.__annotations__}
    special = values["tiktoken_special_tokens"]
    values["tiktoken_special_tokens"] = tuple(special) if special else None
    return TokenizerConfig(**values)

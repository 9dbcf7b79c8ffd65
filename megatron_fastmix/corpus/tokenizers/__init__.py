"""Tokenizers by Megatron's names, behind one interface."""

from megatron_fastmix.corpus.tokenizers.registry import load_tokenizer

__all__ = ["load_tokenizer"]

"""Trains a SentencePiece tokenizer on text."""

import sys

from megatron_fastmix.corpus.commands import main

if __name__ == "__main__":
    sys.exit(main("train-tokenizer"))

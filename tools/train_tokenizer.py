"""Trains a SentencePiece tokenizer on text."""

import sys

from megatron_fastmix.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train-tokenizer", *sys.argv[1:]]))

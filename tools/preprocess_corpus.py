"""Turns text into Megatron's indexed datasets; flags as Megatron's preprocess_data.py."""

import sys

from megatron_fastmix.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["preprocess", *sys.argv[1:]]))

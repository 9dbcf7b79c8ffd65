"""Turns text into Megatron's indexed datasets: `megatron-fastmix preprocess`."""

import sys

from megatron_fastmix.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["preprocess", *sys.argv[1:]]))

"""Finds mixtures by every method, trains target models on them and compares cost and loss."""

import sys

from megatron_fastmix.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare-methods", *sys.argv[1:]]))

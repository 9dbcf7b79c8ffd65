"""Trains the same target model under several mixtures and compares its loss."""

import sys

from megatron_fastmix.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare-mixtures", *sys.argv[1:]]))

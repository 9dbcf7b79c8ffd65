"""Trains a target model under several mixtures: `megatron-fastmix compare-mixtures`."""

import sys

from megatron_fastmix.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare-mixtures", *sys.argv[1:]]))

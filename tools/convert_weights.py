"""Writes a learned mixture in the format of a training tool: `megatron-fastmix export`."""

import sys

from megatron_fastmix.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))

#!/usr/bin/env python
"""Writes a learned mixture in the format of a training tool; see `--format list`."""

import argparse
import sys

from megatron_fastmix.cli import export as command
from megatron_fastmix.program import run_program


def main() -> int:
    """Returns the exit code: 0, or 2 for input that cannot work."""
    parser = argparse.ArgumentParser(description=__doc__)
    command.add_arguments(parser)
    args = parser.parse_args()
    return run_program(lambda: command.run(args), parser.prog)


if __name__ == "__main__":
    sys.exit(main())

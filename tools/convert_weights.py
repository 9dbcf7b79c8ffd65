#!/usr/bin/env python
"""Writes a learned mixture in the format of a training tool; see `--format list`."""

import argparse
import sys

from megatron_fastmix.errors import FastMixError
from megatron_fastmix.export import command


def main() -> int:
    """Returns the exit code: 0, or 2 for input that cannot work."""
    parser = argparse.ArgumentParser(description=__doc__)
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args())
    except FastMixError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

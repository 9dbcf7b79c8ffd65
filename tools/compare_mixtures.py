"""Trains the same target model under several mixtures and compares its loss."""

import argparse
import sys

from megatron_fastmix.cli import join_flags
from megatron_fastmix.errors import FastMixError
from megatron_fastmix.evidence import command


def main() -> int:
    """Returns the exit code: 0, 2 for input that cannot work, 130 when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    command.add_arguments(parser)
    args, rest = parser.parse_known_args()
    args.overrides = join_flags(rest)
    try:
        return command.run(args)
    except FastMixError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

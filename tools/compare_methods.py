"""Finds mixtures by every method, trains target models on them and compares cost and loss."""

import argparse
import sys

from megatron_fastmix.errors import FastMixError
from megatron_fastmix.evidence import method_command


def main() -> int:
    """Returns the exit code: 0, 2 for input that cannot work, 130 when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    method_command.add_arguments(parser)
    try:
        return method_command.run(parser.parse_args())
    except FastMixError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

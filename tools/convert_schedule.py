#!/usr/bin/env python
"""Writes a schedule of weights as the phases of Megatron-LM's --phase-transition-iterations."""

import argparse
import sys

from megatron_fastmix.blend.weight_schedule import read_schedule
from megatron_fastmix.export.megatron_phases import NOTE, phases
from megatron_fastmix.program import run_program
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.rounding import DEFAULT_DECIMALS


def main() -> int:
    """Returns the exit code: 0, or 2 for input that cannot work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("schedule", metavar="SCHEDULE", help="YAML: at_sample and weights by name")
    parser.add_argument("mixture", metavar="MIXTURE_OR_RUN_DIR", help="says each source's path")
    parser.add_argument("--global-batch-size", type=int, required=True)
    parser.add_argument("--train-samples", type=int, required=True, help="of the whole run")
    parser.add_argument("--decimals", type=int, default=DEFAULT_DECIMALS, help="of the weights")
    args = parser.parse_args()
    return run_program(lambda: convert(args), parser.prog)


def convert(args: argparse.Namespace) -> None:
    """Prints the phases. Raises `ConfigError` and `DataError`."""
    text = phases(
        read_schedule(args.schedule),
        {source.name: source.path for source in read_mixture(args.mixture).sources},
        global_batch_size=args.global_batch_size,
        train_samples=args.train_samples,
        decimals=args.decimals,
    )
    sys.stdout.write(text)
    print(f"note: {NOTE}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""The verb `demo`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.demo import demo

HELP = "fetch the demo corpora"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, help="folder for the JSONL files")
    parser.add_argument(
        "--kind",
        choices=sorted(demo.DEMOS),
        default="text",
        help="text for pre-training (default), rows with answers, or large: more text beside it",
    )
    parser.add_argument("--cache", help="folder for downloaded wheels (default: OUTPUT/wheels)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on the size of every corpus (default 1)"
    )


def run(args: argparse.Namespace) -> None:
    if not 0 < args.scale < math.inf:
        raise ConfigError(f"--scale: found {args.scale}; use a positive, finite factor")
    files, made = demo.build_demo(args.output, kind=args.kind, cache=args.cache, scale=args.scale)
    print(demo.format_table(files))
    state = "written" if made else "up to date, nothing to do"
    print(f"{Path(args.output) / demo.PROVENANCE_FILE}: {state}")

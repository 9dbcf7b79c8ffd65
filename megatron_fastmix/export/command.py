"""The command `export`: a learned mixture as the blend of a training tool."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.blend import DEFAULT_DECIMALS, make_blend
from megatron_fastmix.export.mixture_file import read_mixture
from megatron_fastmix.export.registry import FORMATS, find_format

HELP = "write a learned mixture in the format of a training tool"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "mixture", nargs="?", metavar="MIXTURE_OR_RUN_DIR", help="mixture.json, or a run folder"
    )
    parser.add_argument(
        "--format", default="megatron-data-args", help="name of the format; `list` prints all"
    )
    parser.add_argument("--output", metavar="FILE", help="file to write; standard output without")
    parser.add_argument(
        "--decimals",
        type=int,
        default=DEFAULT_DECIMALS,
        help="decimal places of the weights, whose sum stays exactly 1 (default %(default)s)",
    )
    parser.add_argument(
        "--allow-partial", action="store_true", help="export a run that is not finished"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the export, notes to standard error. Raises `ConfigError` and `DataError`."""
    if args.format == "list":
        width = max(map(len, FORMATS))
        print("\n".join(f"{name:{width}}  {entry.tool}" for name, entry in FORMATS.items()))
        return 0
    chosen = find_format(args.format)
    if args.mixture is None:
        raise ConfigError("MIXTURE_OR_RUN_DIR: missing; give a mixture.json or a run folder")
    mixture = read_mixture(args.mixture)
    if not mixture.complete and not args.allow_partial:
        raise ConfigError(
            f"{args.mixture}: the run stopped after {mixture.steps} optimizer steps and is not "
            "complete; resume it, or add --allow-partial to export what it has learned so far"
        )
    blend = make_blend(mixture, decimals=args.decimals)
    text = chosen.render(blend)
    if blend.left_out:
        print(
            f"left out, because the weight rounds to 0 at {args.decimals} decimals: "
            + ", ".join(blend.left_out),
            file=sys.stderr,
        )
    if chosen.note:
        print(f"note: {chosen.note}", file=sys.stderr)
    if args.output:
        try:
            write_atomically(args.output, text)
        except OSError as error:
            raise ConfigError(
                f"--output: cannot write {args.output}: {error.strerror}; choose another file"
            ) from None
        print(f"wrote {args.output}", file=sys.stderr)
    else:
        sys.stdout.write(text)
    return 0


COMMANDS: dict[
    str,
    tuple[
        str,
        Callable[[argparse.ArgumentParser], None],
        Callable[[argparse.Namespace], int],
    ],
] = {"export": (HELP, add_arguments, run)}
"""Help, `add_arguments` and `run` by the command's name; the console command mounts them."""

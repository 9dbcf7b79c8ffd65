"""The verb `export`: a learned mixture in the format of a training tool."""

from __future__ import annotations

import argparse
import sys

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.adjustment import Adjustment
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.notes import change_table, notes
from megatron_fastmix.export.registry import FORMATS, find_format
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.rounding import DEFAULT_DECIMALS

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
    change = parser.add_argument_group(
        "corrections", "applied in this order; the change to each weight is printed"
    )
    change.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="GROUP=SOURCE,...",
        help="sources (or patterns such as 'web_*') that share the sum of their learned weights in "
        "proportion to their tokens",
    )
    change.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help="share of a source or group; the others keep their ratios",
    )
    change.add_argument(
        "--token-budget",
        type=int,
        metavar="TOKENS",
        help="tokens of the run to come that count in the loss (answer tokens of answer-only rows)",
    )
    change.add_argument(
        "--max-epochs",
        type=float,
        metavar="N",
        help="see no source more often than this in the token budget; the others share the excess",
    )
    change.add_argument(
        "--min-weight", type=float, default=0.0, metavar="SHARE", help="drop sources below this"
    )
    change.add_argument(
        "--rows",
        choices=("documents", "sequences"),
        help="what a row holds, in formats that count rows (default: what is usual with the tool)",
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
    adjustment = read_adjustment(args)
    blend = make_blend(
        mixture, chosen.unit(args.rows), decimals=args.decimals, adjustment=adjustment
    )
    text = chosen.render(blend)
    said = notes(mixture, blend, decimals=args.decimals)
    if any((args.set, args.group, args.token_budget, args.max_epochs, args.min_weight)):
        said.append(change_table(mixture, blend))
    if chosen.note:
        said.append(f"note: {chosen.note}")
    for line in said:
        print(line, file=sys.stderr)
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


def read_adjustment(args: argparse.Namespace) -> Adjustment:
    """The corrections that the arguments ask for. Raises `ConfigError`."""
    groups: dict[str, list[str]] = {}
    for text in args.group:
        name, members = _assignment("--group", text, "GROUP=SOURCE,...")
        if name in groups:
            raise ConfigError(f"--group {name}: given twice; list all of its sources in one")
        groups[name] = members.split(",")
    fixed: dict[str, float] = {}
    for text in args.set:
        name, share = _assignment("--set", text, "NAME=SHARE")
        try:
            value = float(share)
        except ValueError:
            raise ConfigError(f"--set {text}: {share!r} is no number; use a share") from None
        if name in fixed:
            raise ConfigError(f"--set {name}: given twice")
        fixed[name] = value
    return Adjustment(
        fixed=fixed,
        groups=groups,
        token_budget=args.token_budget,
        max_epochs=args.max_epochs,
        min_weight=args.min_weight,
    )


def _assignment(flag: str, text: str, form: str) -> tuple[str, str]:
    # A source's name may hold an equals sign; a share and a list of sources seldom do.
    name, separator, value = text.rpartition("=")
    if not separator or not name or not value:
        raise ConfigError(f"{flag} {text}: expected {form}")
    return name, value

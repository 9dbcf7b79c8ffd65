"""The verb `export`: a learned mixture in the format of a training tool."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export import learned_phases
from megatron_fastmix.export.adjustment import Adjustment
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.notes import change_table, notes
from megatron_fastmix.export.output_file import check_output
from megatron_fastmix.export.paths import where_it_trains
from megatron_fastmix.export.registry import FORMATS, find_format
from megatron_fastmix.result.learned_mixture import LearnedMixture, LearnedSource
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.storage import reason_of
from megatron_fastmix.text_list import listed
from megatron_fastmix.token_count import token_count

HELP = "write a learned mixture in the format of a training tool"

_DEFAULT_FORMAT = "megatron-data-args"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "mixture", nargs="?", metavar="MIXTURE_OR_RUN_DIR", help="mixture.json, or a run folder"
    )
    parser.add_argument(
        "--format", help=f"name of the format (default {_DEFAULT_FORMAT}); `list` prints all"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file to write; standard output without; the folder of --phases (RUN/phases)",
    )
    parser.add_argument(
        "--decimals",
        type=int,
        help="decimal places of the weights, whose sum stays exactly 1 (default 4; above 100 "
        "sources as many as leave each its share)",
    )
    parser.add_argument(
        "--allow-partial", action="store_true", help="export a run that is not finished"
    )
    parser.add_argument(
        "--path-map",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="absolute paths, and NEW for what begins with OLD, as the machine that trains has it",
    )
    phase = parser.add_argument_group(
        "phases",
        "two mixtures that follow each other, in the forms of Megatron-LM, Nemotron and "
        "--fastmix-schedule, written into the folder --output",
    )
    phase.add_argument(
        "--phases",
        type=float,
        metavar="FRACTION",
        help="mean weights over the first part of the run's steps, such as 0.8, and over the rest",
    )
    phase.add_argument(
        "--anneal",
        metavar="MIXTURE_OR_RUN_DIR",
        help="with --phases: the learned weights of this run for the rest, and those of the first "
        "run before",
    )
    phase.add_argument(
        "--global-batch-size", type=int, metavar="SAMPLES", help="of the run to come"
    )
    phase.add_argument(
        "--train-samples",
        type=int,
        metavar="SAMPLES",
        help="of the run to come (default: the mixture's token budget, in samples)",
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
        help="share of a source or group, such as 0.2 or 20%%; the others keep their ratios",
    )
    change.add_argument(
        "--token-budget",
        type=token_count,
        metavar="TOKENS",
        help="loss tokens of the run to come (300B, 3e11); answer tokens of answer-only rows",
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
    chosen = find_format(args.format or _DEFAULT_FORMAT)
    if args.mixture is None:
        raise ConfigError("MIXTURE_OR_RUN_DIR: missing; give a mixture.json or a run folder")
    mixture = _read(args.mixture, allow_partial=args.allow_partial)
    if args.output and args.phases is None:
        check_output(args.output, args.mixture)
    if args.phases is not None:
        return _write_phases(args, mixture)
    for flag in ("anneal", "global_batch_size", "train_samples"):
        if getattr(args, flag) is not None:
            raise ConfigError(f"--{flag.replace('_', '-')}: goes with --phases FRACTION; add it")
    adjustment = read_adjustment(args)
    mixture, lost = where_it_trains(mixture, args.path_map)
    blend = make_blend(
        mixture, chosen.unit(args.rows), decimals=args.decimals, adjustment=adjustment
    )
    text = chosen.render(blend)
    said = [*notes(mixture, blend), *lost]
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
                f"--output: cannot write {args.output}: {reason_of(error)}; choose another file"
            ) from None
        print(f"wrote {args.output}", file=sys.stderr)
    else:
        sys.stdout.write(text)
    return 0


def _read(path: str, *, allow_partial: bool) -> LearnedMixture:
    mixture = read_mixture(path)
    if not mixture.complete and not allow_partial:
        raise ConfigError(
            f"{path}: the run stopped after {mixture.steps} optimizer steps and is not complete; "
            "resume it, or add --allow-partial to export what it has learned so far"
        )
    return mixture


def _write_phases(args: argparse.Namespace, mixture: LearnedMixture) -> int:
    changing = ("set", "group", "token_budget", "max_epochs", "min_weight", "rows")
    for flag in ("format", *changing):
        if getattr(args, flag):
            raise ConfigError(
                f"--{flag.replace('_', '-')}: does not go with --phases; leave it out"
            )
    if args.global_batch_size is None:
        raise ConfigError("--phases: needs --global-batch-size SAMPLES")
    learned_phases.check_text(mixture, args.mixture)
    mixture, lost = where_it_trains(mixture, args.path_map)
    sources = {source.name: source for source in mixture.sources}
    given = Path(args.mixture)
    run = RunFolder(given if given.is_dir() else given.parent)
    output = args.output or str(run.path / "phases")
    names = (learned_phases.SCHEDULE, *learned_phases.BLENDS)
    own = next((file for name in names if (file := Path(output, name)).exists()), None)
    if own is not None and not Path(output, learned_phases.FLAGS).exists():
        raise ConfigError(
            f"--output: {own} is there, and no phases beside it that would tell that this command "
            "wrote it; choose another folder"
        )
    if args.anneal is None:
        if mixture.seeds and not run.metrics.exists():
            seeds = listed([str(run.seed(seed).path) for seed in mixture.seeds])
            raise ConfigError(
                f"--phases: {args.mixture} averages several seeds, and phases are of the steps of "
                f"one search; give one seed's folder: {seeds}"
            )
        main, anneal = learned_phases.trajectory_means(run.metrics, mixture, args.phases)
    else:
        later = _read(args.anneal, allow_partial=args.allow_partial)
        learned_phases.check_text(later, args.anneal)
        later, lost_later = where_it_trains(later, args.path_map)
        lost = lost or lost_later
        main, anneal = mixture.weights, later.weights
        for source in later.sources:
            here = _places(sources.setdefault(source.name, source))
            differing = sorted(here ^ _places(source))
            if differing:
                raise ConfigError(
                    f"--anneal {args.anneal}: source {source.name} has {listed(differing)} either "
                    f"there or in {args.mixture} alone; names must mean the same data"
                )
    train_samples = args.train_samples
    if train_samples is None:
        train_samples = mixture.token_budget // mixture.seq_length
        lost.append(
            f"note: {train_samples:,} samples are the token budget in the search's samples of "
            f"{mixture.seq_length} tokens; for another --seq-length give --train-samples"
        )
    schedule = learned_phases.phase_schedule(
        main,
        anneal,
        fraction=args.phases,
        train_samples=train_samples,
        global_batch_size=args.global_batch_size,
    )
    written, left_out = learned_phases.write_phases(
        output,
        schedule,
        sources,
        train_samples=train_samples,
        global_batch_size=args.global_batch_size,
        decimals=args.decimals,
    )
    for line in [*left_out, *lost, *learned_phases.phase_notes(schedule, mixture, output)]:
        print(line, file=sys.stderr)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    return 0


def _places(source: LearnedSource) -> set[str]:
    return {os.path.realpath(shard.path) for shard in source.shards}


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
        percent = share.endswith("%")
        try:
            value = float(share.removesuffix("%")) / (100 if percent else 1)
        except ValueError:
            raise ConfigError(
                f"--set {text}: {share!r} is no number; use a share such as 0.2 or 20%"
            ) from None
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

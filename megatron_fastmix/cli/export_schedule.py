"""The command `export-schedule`: weights by consumed samples as Megatron's phases."""

from __future__ import annotations

import argparse
import sys

from megatron_fastmix.blend.weight_schedule import read_schedule
from megatron_fastmix.errors import DataError
from megatron_fastmix.export.learned_phases import by_dataset, check_text, decimals_for, left_out
from megatron_fastmix.export.megatron_phases import NOTE, phases
from megatron_fastmix.export.paths import where_it_trains
from megatron_fastmix.result.mixture_file import read_mixture

HELP = "write a schedule of weights for Megatron-LM's --phase-transition-iterations"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `export-schedule`."""
    parser.add_argument("schedule", metavar="SCHEDULE", help="YAML: at_sample and weights by name")
    parser.add_argument("mixture", metavar="MIXTURE_OR_RUN_DIR", help="says each source's path")
    parser.add_argument("--global-batch-size", type=int, required=True)
    parser.add_argument("--train-samples", type=int, required=True, help="of the whole run")
    parser.add_argument("--decimals", type=int, help="of the weights (default as in export)")
    parser.add_argument(
        "--path-map",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="absolute paths, and NEW for what begins with OLD, as in export",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the phases, a note to standard error. Raises `ConfigError` and `DataError`."""
    schedule = read_schedule(args.schedule)
    mixture = read_mixture(args.mixture)
    check_text(mixture, args.mixture)
    mixture, lost = where_it_trains(mixture, args.path_map)
    sources = {source.name: source for source in mixture.sources}
    missing = [name for name in schedule.names if name not in sources]
    if missing:
        raise DataError(
            f"{args.schedule}: {', '.join(missing)}: no source of {args.mixture}, which has "
            f"{', '.join(sources)}"
        )
    datasets, paths = by_dataset(schedule, sources)
    places = decimals_for(datasets, sources, args.decimals)
    text = phases(
        datasets,
        paths,
        global_batch_size=args.global_batch_size,
        train_samples=args.train_samples,
        decimals=places,
    )
    sys.stdout.write(text)
    for line in [*left_out(datasets, places), *lost, f"note: {NOTE}"]:
        print(line, file=sys.stderr)
    return 0

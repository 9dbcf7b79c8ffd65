"""The command `report`; `compare` is in a file of its own."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.blend_weights import read_blend_weights
from megatron_fastmix.export.output_file import check_page
from megatron_fastmix.export.paths import read_path_map
from megatron_fastmix.report.run_record import RunRecord, are_begun
from megatron_fastmix.report.write import read_runs, write_report
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.storage import reason_of

WATCH_SECONDS = 10

HELP = "write a page and pictures that show what searches did"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `report`."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, folder of seeds, or metrics.jsonl"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder of report.html and the pictures (default: `report` in the RUN; several need "
        "it, unless they are seeds of one search, whose folder then has it)",
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="BLEND",
        help="a blend to compare the learned mixture with, such as the one in use (what "
        "`megatron-fastmix import` reads); may be repeated",
    )
    parser.add_argument(
        "--path-map",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="in the commands of the page, what stands for paths that begin with OLD where the "
        "training runs; may be repeated",
    )
    parser.add_argument("--no-png", action="store_true", help="write the page alone")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=int,
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help="write it again every so often until every run has ended; the open page follows "
        f"(default {WATCH_SECONDS})",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the report. Raises `DataError` and `ConfigError`."""
    if args.watch is not None and args.watch < 1:
        raise ConfigError(f"--watch: found {args.watch}; use 1 second or more")
    first = Path(args.runs[0])
    folder = Path(args.output) if args.output else _own_folder(args.runs)
    check_page(folder)
    pictures = not args.no_png
    path_map = read_path_map(args.path_map)
    while True:
        try:
            runs = read_runs(args.runs)
        except DataError:
            # A search takes a while to make its folder and to write its first line.
            if args.watch is None or first.is_file():
                raise
            print(f"waiting for {RunFolder(first).metrics}", file=sys.stderr)
            time.sleep(args.watch)
            continue
        ended = all(run.ended for run in runs) and are_begun(args.runs)
        live = args.watch if args.watch and not ended else None
        try:
            page = write_report(
                runs,
                folder,
                pictures=pictures,
                reload_seconds=live,
                against=_read_blends(args.against, runs),
                path_map=path_map,
            )
        except OSError as error:
            raise ConfigError(
                f"--output: cannot write {folder}: {reason_of(error)}; choose another folder"
            ) from None
        if live is None:
            print(f"wrote {page}")
            return 0
        print(f"wrote {page}, at step {runs[0].step}", file=sys.stderr)
        time.sleep(live)


def _own_folder(paths: Sequence[str]) -> Path:
    """Where the page of the runs lies beside their result. Raises `ConfigError` where they have
    none in common: a comparison must not take the place of the page of one of them."""
    folders = [path.parent if path.is_file() else path for path in map(Path, paths)]
    if len({folder.resolve() for folder in folders}) == 1:
        return RunFolder(folders[0]).report
    above = folders[0].resolve().parent
    seeds = {seed.path.resolve() for seed in RunFolder(above).seeds()}
    if {folder.resolve() for folder in folders} == seeds:
        return RunFolder(above).report
    raise ConfigError(
        f"--output: missing; {', '.join(paths)} are not the result of one search, so name the "
        "folder of the page that shows them together"
    )


def _read_blends(paths: Sequence[str], runs: Sequence[RunRecord]) -> dict[str, dict[str, float]]:
    """By file the weights of the blends; none before the searches have a result."""
    mixture = runs[0].mixture
    if mixture is None:
        return {}
    return {path: read_blend_weights(path, mixture) for path in paths}

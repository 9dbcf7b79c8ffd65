"""The command `report`; `compare` is in a file of its own."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.report.charts import Chart, build_charts
from megatron_fastmix.report.page import render_page
from megatron_fastmix.report.run_record import RunRecord, find_runs, read_run
from megatron_fastmix.report.verdict import Verdict, are_repeats, judge, learned

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
        help="folder of report.html and the pictures (default: `report` in the first RUN)",
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
    folder = Path(args.output) if args.output else (first.parent if first.is_file() else first)
    folder = folder if args.output else folder / "report"
    pictures = not args.no_png
    while True:
        try:
            runs = read_runs(args.runs)
        except DataError:
            # A search takes a while to write its first line.
            if args.watch is None or not first.is_dir():
                raise
            print(f"waiting for {first / 'metrics.jsonl'}", file=sys.stderr)
            time.sleep(args.watch)
            continue
        ended = all(run.ended for run in runs)
        live = args.watch if args.watch and not ended else None
        try:
            page = write_report(runs, folder, pictures=pictures, reload_seconds=live)
        except OSError as error:
            raise ConfigError(f"--output: cannot write {folder}: {error.strerror}") from None
        if live is None:
            print(f"wrote {page}")
            return 0
        print(f"wrote {page}, at step {runs[0].step}", file=sys.stderr)
        time.sleep(live)


def read_runs(paths: Sequence[str | Path]) -> list[RunRecord]:
    """The runs at `paths`, with names that tell them apart."""
    found = find_runs(paths)
    names = [path.resolve().parent.name for path in found]
    if len(set(names)) < len(names):
        names = [str(path.parent) for path in found]
    return [read_run(path, name) for path, name in zip(found, names, strict=True)]


def write_report(
    runs: Sequence[RunRecord],
    folder: str | Path,
    *,
    pictures: bool = True,
    reload_seconds: int | None = None,
) -> Path:
    """Writes report.html, and a PNG for each chart, into `folder`; returns the page's path.

    Runs that differ in nothing but the seed are averaged; others are shown side by side.
    """
    verdict: Verdict | None = judge(runs) if are_repeats(runs) else None
    weights = verdict.weights if verdict else _largest(runs)
    sections = build_charts(runs, sorted(weights, key=lambda name: -weights[name]))
    page = Path(folder) / "report.html"
    write_atomically(page, render_page(runs, verdict, sections, reload_seconds=reload_seconds))
    if pictures:
        _write_pictures([chart for charts in sections.values() for chart in charts], folder)
    return page


def _write_pictures(charts: Sequence[Chart], folder: str | Path) -> None:
    from megatron_fastmix.report.png import write_png  # matplotlib takes a second

    for chart in charts:
        write_png(chart, folder)


def _largest(runs: Sequence[RunRecord]) -> dict[str, float]:
    largest: dict[str, float] = {}
    for run in runs:
        for name, weight in learned(run)[0].items():
            largest[name] = max(largest.get(name, 0.0), weight)
    return largest

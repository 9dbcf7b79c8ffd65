"""The command `compare-methods`: scenarios × methods × seeds, in rows that stay on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.registry import METHODS
from megatron_fastmix.lab.comparison.method_table import MethodLine, measurements, text
from megatron_fastmix.lab.comparison.methods import MethodComparison
from megatron_fastmix.lab.comparison.scenario import load_scenario
from megatron_fastmix.lab.jobs import worker_count
from megatron_fastmix.lab.measurements import write_measurements

HELP = "find mixtures by every published method and compare them on a target model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `compare-methods`."""
    parser.add_argument(
        "--scenario",
        nargs="+",
        required=True,
        metavar="FILE",
        help="such as configs/methods/*.yaml",
    )
    parser.add_argument(
        "--methods",
        metavar="A,B",
        help=f"of {', '.join(METHODS)} and the scenario's variants; default: the scenario's",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="seeds 1 ... of each, or more where the scenario says so (default 3)",
    )
    parser.add_argument(
        "--output",
        default="runs/methods_rows",
        help="folder of finished rows, a file per scenario (default %(default)s)",
    )
    parser.add_argument(
        "--work", default="runs/methods", help="proxies and run folders (default %(default)s)"
    )
    parser.add_argument("--workers", type=int, help="trainings at once (default: one per core)")
    parser.add_argument("--search-only", action="store_true", help="train no target models")
    parser.add_argument(
        "--table-only", action="store_true", help="train nothing; show what is there"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the measurements to FILE")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw cost against target loss")


def run(args: argparse.Namespace) -> int:
    """Makes the rows that are missing and prints a table for each scenario; returns the exit code.

    Raises `ConfigError` and `DataError` before anything is trained, and what training raises.
    """
    workers = worker_count(args.workers)
    if args.seeds < 1:
        raise ConfigError(f"--seeds: found {args.seeds}; use at least 1")
    scenarios = {Path(file).stem: load_scenario(file) for file in args.scenario}
    methods = {name: scenario.choose(args.methods, name) for name, scenario in scenarios.items()}
    tables: dict[str, list[MethodLine]] = {}
    try:
        for name, scenario in scenarios.items():
            comparison = MethodComparison(
                name,
                scenario,
                methods[name],
                seeds=args.seeds,
                rows=Path(args.output),
                work=Path(args.work),
                workers=workers,
            )
            if not args.table_only:
                comparison.search()
                if not args.search_only:
                    comparison.train()
            tables[name] = comparison.lines()
            print(f"\n{name}, target loss in nats per token:\n{text(tables[name])}\n", flush=True)
    except KeyboardInterrupt:
        print("\nStopped; finished rows stay. The same command goes on from there.")
        return 130
    found = [row for name, lines in tables.items() for row in measurements(name, lines)]
    if args.json:
        write_measurements(args.json, found)
    if args.plot:
        from megatron_fastmix.lab.comparison.method_plot import plot_methods

        titles = {name: each.title or name for name, each in scenarios.items()}
        plot_methods({titles[name]: lines for name, lines in tables.items()}, Path(args.plot))
    return 0

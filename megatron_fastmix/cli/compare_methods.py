"""The command `compare-methods`: scenarios × methods × seeds, in rows that stay on disk."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.registry import FASTMIX, METHODS
from megatron_fastmix.lab.comparison import over_scenarios
from megatron_fastmix.lab.comparison.method_lines import MethodLine
from megatron_fastmix.lab.comparison.method_table import measurements, text
from megatron_fastmix.lab.comparison.methods import MethodComparison
from megatron_fastmix.lab.comparison.result import versions
from megatron_fastmix.lab.comparison.row_workers import SAVE_INTERVAL
from megatron_fastmix.lab.comparison.scenario import load_scenario
from megatron_fastmix.lab.jobs import worker_count
from megatron_fastmix.lab.measurements import write_measurements

HELP = "find mixtures by every published method and compare them on a target model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `compare-methods`."""
    parser.add_argument(
        "--scenario",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="such as configs/methods/*.yaml",
    )
    parser.add_argument(
        "--methods",
        metavar="A,B",
        help=f"of {', '.join(METHODS)} and the scenario's variants and derived mixtures; default: "
        "the scenario's methods and variants",
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
    parser.add_argument(
        "--save-interval",
        type=int,
        default=SAVE_INTERVAL,
        help="steps of a target model's training between two checkpoints in --work, from the last "
        "of which it goes on (default %(default)s)",
    )
    parser.add_argument("--search-only", action="store_true", help="train no target models")
    parser.add_argument(
        "--table-only", action="store_true", help="train nothing; show what is there"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the measurements to FILE")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw cost against target loss")
    parser.add_argument(
        "--plot-variants",
        metavar="FILE.png",
        help="also draw how far variants of proxy and training get from FastMix's mixture, and "
        "what that costs; of one scenario",
    )
    parser.add_argument(
        "--against",
        metavar="NAME",
        default=FASTMIX,
        help="the method or variant that differences and costs in the table are relative to "
        "(default %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Makes the rows that are missing and prints a table for each scenario; returns the exit code.

    Raises `ConfigError` and `DataError` before anything is trained, and what training raises.
    """
    workers = worker_count(args.workers)
    for flag, value in (("--seeds", args.seeds), ("--save-interval", args.save_interval)):
        if value < 1:
            raise ConfigError(f"{flag}: found {value}; use at least 1")
    files = Counter(Path(file).stem for file in args.scenario)
    if twice := [name for name, count in files.items() if count > 1]:
        raise ConfigError(f"--scenario: found two files {twice[0]}, a name of rows; rename one")
    scenarios = {Path(file).stem: load_scenario(file) for file in args.scenario}
    methods = {name: scenario.choose(args.methods, name) for name, scenario in scenarios.items()}
    for name, chosen in methods.items():
        if args.against != FASTMIX and args.against not in chosen:
            raise ConfigError(
                f"--against: found {args.against!r}; choose among what {name} compares: "
                f"{', '.join(chosen)}"
            )
    if args.plot_variants and len(scenarios) > 1:
        raise ConfigError(f"--plot-variants: found {len(scenarios)} scenarios; name one")
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
                save_interval=args.save_interval,
            )
            if not args.table_only:
                setting = None if args.search_only else comparison.claim()
                comparison.search()
                if setting:
                    comparison.train(setting)
            tables[name] = comparison.lines()
            shown = f"no rows of these methods in {comparison.file.path}"
            if tables[name]:
                shown = text(tables[name], args.against)
            print(f"\n{name}, target loss in nats per token:\n{shown}\n", flush=True)
    except KeyboardInterrupt:
        print("\nStopped; finished rows stay. The same command goes on from there.")
        return 130
    found = [
        row for name, lines in tables.items() for row in measurements(name, lines, args.against)
    ]
    begun = {name: lines for name, lines in tables.items() if lines}
    if len(begun) > 1:
        pooled = over_scenarios.differences(begun, args.against)
        if pooled:
            print(over_scenarios.text(pooled, list(begun), args.against), flush=True)
            found += over_scenarios.measurements(pooled, len(begun), args.against)
    if args.json:
        shown_lines = [line for lines in tables.values() for line in lines]
        made_with = versions(each for line in shown_lines for each in line.made_with)
        write_measurements(args.json, found, versions=made_with)
    if args.plot:
        from megatron_fastmix.lab.comparison.method_plot import plot_methods

        titles = {name: each.title or name for name, each in scenarios.items()}
        plot_methods({titles[name]: lines for name, lines in tables.items()}, Path(args.plot))
    if args.plot_variants:
        from megatron_fastmix.lab.comparison.variant_plot import plot_variants

        ((name, scenario),) = scenarios.items()
        plot_variants(scenario, tables[name], Path(args.plot_variants))
    return 0

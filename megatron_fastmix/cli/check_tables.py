"""The command `check-tables`: the baselines' regressions on public tables of trained models."""

from __future__ import annotations

import argparse
from importlib.metadata import version

from megatron_fastmix.lab.baselines.regressors import require_lightgbm, require_scipy
from megatron_fastmix.lab.baselines.settings import load_settings
from megatron_fastmix.lab.benchmarks.check_tables import CheckSettings, check
from megatron_fastmix.lab.benchmarks.regmix_tables import read_tables
from megatron_fastmix.lab.measurements import PACKAGES, table, write_measurements

HELP = "check the baselines' regressions on the public tables of their papers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `check-tables`."""
    usual = CheckSettings()
    parser.add_argument(
        "--regmix", required=True, metavar="DIR", help="clone of github.com/sail-sg/regmix"
    )
    parser.add_argument(
        "--target", default=usual.target, help="validation set (default %(default)s)"
    )
    parser.add_argument(
        "--proxies",
        type=int,
        default=usual.proxies,
        help="mixtures of a subset of the table (default %(default)s)",
    )
    parser.add_argument(
        "--draws", type=int, default=usual.draws, help="subsets (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=usual.seed, help="default %(default)s")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="regmix.KEY=VALUE",
        help="of the search over simulated mixtures, such as regmix.max_reads=100",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the measurements to FILE")


def run(args: argparse.Namespace) -> int:
    """Prints the measurements beside the paper's; returns the exit code. Raises `ConfigError` and
    `DataError`."""
    require_lightgbm()
    require_scipy()
    settings = CheckSettings(
        target=args.target, proxies=args.proxies, draws=args.draws, seed=args.seed
    )
    search = load_settings(args.set).regmix
    tables = read_tables(args.regmix, settings.target)
    found = check(tables, settings, search, report=lambda line: print(line, flush=True))
    print(f"\nloss of {settings.target}; the column reach is the paper's figure\n{table(found)}")
    if args.json:
        write_measurements(
            args.json,
            found,
            versions={name: version(name) for name in (*PACKAGES, "lightgbm", "scipy")},
            target=settings.target,
            proxies=settings.proxies,
            draws=settings.draws,
            seed=settings.seed,
            regmix=vars(search),
        )
    return 0

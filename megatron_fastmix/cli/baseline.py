"""The command `baseline`: a mixture by another method, from the configuration of a search."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from megatron_fastmix.config import load_config
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.registry import BASELINES, find_mixtures, proxies_of
from megatron_fastmix.lab.baselines.settings import load_settings
from megatron_fastmix.lab.jobs import worker_count
from megatron_fastmix.report.summary import final_table
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.start.artifacts import write_run_artifacts

HELP = "find a mixture by another published method"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `baseline`; other --key=value override the configuration."""
    parser.add_argument("method", choices=BASELINES, metavar="METHOD", help=", ".join(BASELINES))
    parser.add_argument("--config", required=True, help="YAML file of a search")
    parser.add_argument(
        "--output", required=True, help="folder for mixture.json, blend files and finished proxies"
    )
    parser.add_argument("--workers", type=int, help="proxies at once (default: one per core)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="hyper-parameters of the method, such as regmix.runs=512",
    )
    parser.set_defaults(overrides=[])


def run(args: argparse.Namespace) -> int:
    """Finds the mixture and prints it; returns the exit code. Raises `ConfigError`, `DataError`."""
    workers = worker_count(args.workers)
    settings = load_settings(args.set)
    folder = RunFolder(Path(args.output))
    config = load_config(args.config, args.overrides)
    if folder.metrics.exists() or folder.seeds():
        raise ConfigError(
            f"--output: {args.output} is the run folder of a search, whose result would be "
            "written over; choose another folder"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        find_mixtures(
            [(args.method, dataclasses.replace(config, run_dir=str(folder.path)), folder.mixture)],
            folder.path / "proxies",
            workers=workers,
            settings=settings,
        )
    except KeyboardInterrupt:
        if proxies_of(args.method, settings) is None:
            print("\nStopped. The same command begins anew.")
        else:
            print("\nStopped; finished proxies stay. The same command goes on from there.")
        return 130
    mixture = read_mixture(folder.path)
    files = write_run_artifacts(folder.path, mixture)
    print(final_table(mixture, blend_txt=files.blend_txt, blend_json=files.blend_json))
    return 0

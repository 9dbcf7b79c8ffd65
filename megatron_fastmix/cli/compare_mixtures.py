"""The command `compare-mixtures`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_fastmix.export.blend_weights import read_blend_weights
from megatron_fastmix.lab.comparison.candidates import REPEATED, make_candidates, select
from megatron_fastmix.lab.comparison.config import load_compare_config
from megatron_fastmix.lab.comparison.inputs import make_setting, read_learned
from megatron_fastmix.lab.comparison.result import (
    error_line,
    loss_table,
    measurement_lines,
    versions,
)
from megatron_fastmix.lab.comparison.row_workers import train_rows
from megatron_fastmix.lab.comparison.rows import Row, RowFile, Task
from megatron_fastmix.lab.comparison.statistics import measurements
from megatron_fastmix.lab.jobs import worker_count
from megatron_fastmix.lab.measurements import write_measurements
from megatron_fastmix.result.learned_mixture import LearnedMixture

ROWS = "rows.jsonl"
"""Name of the finished rows in the output folder."""

HELP = "train a target model under learned and other mixtures and compare its loss"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `compare-mixtures`; other --key=value override the configuration."""
    parser.add_argument(
        "--mixture",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="learned mixtures: mixture.json or run folders, such as those of several seeds",
    )
    parser.add_argument(
        "--blend",
        action="append",
        default=[],
        metavar="FILE",
        help="a blend to compare, too, such as a capped export or the one in use (what "
        "`megatron-fastmix import` reads); may be repeated",
    )
    parser.add_argument("--output", required=True, help="folder of finished rows; resumed")
    parser.add_argument(
        "--config",
        help="YAML of the target model and its training, such as configs/quickstart_compare.yaml "
        "(default: 4 layers of width 128, 170 steps of 8 samples, 3 seeds)",
    )
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="NAME=PREFIX",
        help="held-out data that the search never saw; may be repeated",
    )
    parser.add_argument(
        "--only",
        default="",
        help="mixtures to compare, by kind or name: learned,blend,uniform,proportional,single,"
        "random",
    )
    parser.add_argument(
        "--workers", type=int, help="rows at once (default: one per core, or 1 on a GPU)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the measurements to FILE")
    parser.add_argument("--plot", metavar="FILE.png", help="also draw cost against target loss")
    parser.set_defaults(overrides=[])
    parser.epilog = (
        "Further --key=value override the configuration: --train-iters=200, --hidden-size=256, "
        "--num-seeds=5, --random-draws=0, --eval-samples=4096."
    )


def run(args: argparse.Namespace) -> int:
    """Trains the rows that are missing and prints the comparison; returns the exit code.

    Raises `ConfigError` and `DataError` before anything is trained, and `NonFiniteError`.
    """
    workers = worker_count(args.workers)
    config = load_compare_config(args.config, args.overrides, args.test)
    mixtures = read_learned(args.mixture)
    setting = make_setting(config, next(iter(mixtures.values())), args.mixture[0])
    search_flops = {name: m.cost.get("training_flops", 0.0) for name, m in mixtures.items()}
    candidates = make_candidates(
        {source.name: source.tokens for source in setting.sources},
        {name: (mixture.weights, search_flops[name]) for name, mixture in mixtures.items()},
        random_draws=config.random_draws,
        draw_seed=config.draw_seed,
        blends=_read_blends(args.blend, next(iter(mixtures.values()))),
    )
    only = [name for name in args.only.split(",") if name]
    tasks = [
        Task(candidate=candidate, seed=seed)
        for candidate in select(candidates, only)
        for seed in range(
            1, 1 + (config.num_seeds if candidate.kind in REPEATED else config.other_seeds)
        )
    ]
    file = RowFile(Path(args.output, ROWS))
    file.claim(setting)
    for name, mixture in mixtures.items():
        if not mixture.complete:
            print(f"note: the search of {name} was stopped early", file=sys.stderr)
    try:
        found = train_rows(
            setting,
            tasks,
            file,
            workers=workers,
            keep_samples=True,
            checkpoints=file.path.parent / "trainings",
        )
    except KeyboardInterrupt:
        print("\nStopped; finished rows stay. The same command goes on from there.")
        return 130
    # A row may have had another name in the comparison that trained it.
    named = [replace(found[task.key], mixture=task.candidate.name) for task in tasks]
    shares = {test.name: test.weight for test in setting.tests}
    _print(args, named, shares, search_flops)
    return 0


def _read_blends(paths: Sequence[str], mixture: LearnedMixture) -> dict[str, dict[str, float]]:
    """Weights by name of the file without its suffix, or by path where names recur."""
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        names = list(paths)
    return {
        name: read_blend_weights(path, mixture) for name, path in zip(names, paths, strict=True)
    }


def _print(
    args: argparse.Namespace,
    rows: list[Row],
    shares: dict[str, float],
    search_flops: dict[str, float],
) -> None:
    made = measurements(rows, list(search_flops.values()))
    counts = [row.tokens for row in rows]
    print()
    # Answer-only rows differ in length, so that equal steps read different numbers of tokens.
    read = " to ".join(f"{tokens:,}" for tokens in sorted({min(counts), max(counts)}))
    print(f"Target loss on the test set, nats per token, after {read} tokens each:")
    print(loss_table(rows))
    print(error_line(shares, rows))
    print(f"one target training: {rows[0].flops:.3g} FLOPs")
    print()
    print(measurement_lines(made))
    made_with = versions(row.versions for row in rows)
    several = [f"{name} {found}" for name, found in made_with.items() if "," in found]
    if several:
        print(f"note: rows were made with different versions: {'; '.join(several)}")
    if args.json:
        write_measurements(args.json, made, versions=made_with)
    if args.plot:
        from megatron_fastmix.lab.comparison.plot import plot_comparison

        plot_comparison(rows, search_flops, Path(args.plot))

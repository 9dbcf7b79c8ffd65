"""The command `compare-mixtures`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from megatron_fastmix.lab.comparison.candidates import REPEATED, make_candidates, select
from megatron_fastmix.lab.comparison.config import load_compare_config
from megatron_fastmix.lab.comparison.inputs import make_setting, read_learned
from megatron_fastmix.lab.comparison.result import (
    error_line,
    figure_lines,
    loss_table,
    versions,
    write_json,
)
from megatron_fastmix.lab.comparison.row_workers import train_rows
from megatron_fastmix.lab.comparison.rows import Row, Task, claim_folder, read_rows
from megatron_fastmix.lab.comparison.statistics import figures
from megatron_fastmix.lab.jobs import worker_count

HELP = "train a target model under learned and other mixtures and compare its loss"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `compare-mixtures`; other --key=value override the configuration."""
    parser.add_argument(
        "--mixture",
        nargs="+",
        required=True,
        metavar="FILE",
        help="learned mixtures: mixture.json or run folders, such as those of several seeds",
    )
    parser.add_argument("--output", required=True, help="folder of finished rows; resumed")
    parser.add_argument("--config", help="YAML file (configs/quickstart_compare.yaml)")
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
        help="mixtures to compare, by kind or name: learned,uniform,proportional,single,random",
    )
    parser.add_argument(
        "--workers", type=int, help="rows at once (default: one per core, or 1 on a GPU)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
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
    )
    only = [name for name in args.only.split(",") if name]
    tasks = [
        Task(candidate=candidate, seed=seed)
        for candidate in select(candidates, only)
        for seed in range(
            1, 1 + (config.num_seeds if candidate.kind in REPEATED else config.other_seeds)
        )
    ]
    folder = Path(args.output)
    claim_folder(folder, setting)
    rows = read_rows(folder, setting, tasks)
    missing = [task for task in tasks if task.file_name not in rows]
    print(f"{folder}: {len(rows)} of {len(tasks)} rows are finished", flush=True)
    for name, mixture in mixtures.items():
        if not mixture.complete:
            print(f"note: the search of {name} was stopped early", file=sys.stderr)

    began = time.monotonic()
    done = 0

    def report(task: Task) -> None:
        nonlocal done
        done += 1
        row = read_rows(folder, setting, [task])[task.file_name]
        left = (time.monotonic() - began) / done * (len(missing) - done)
        print(
            f"[{len(rows) + done}/{len(tasks)}] {task.candidate.name}, seed {task.seed}: "
            f"loss {row.loss:.4f} in {row.wall_seconds:.0f} s, about {left / 60:.0f} min left",
            flush=True,
        )

    try:
        if missing:
            train_rows(setting, missing, folder, workers=workers, finished=report)
    except KeyboardInterrupt:
        print(f"\nStopped; {len(rows) + done} rows stay. The same command goes on from there.")
        return 130
    found = read_rows(folder, setting, tasks)
    _print(args, [_named(found[task.file_name], task) for task in tasks], search_flops)
    return 0


def _named(row: Row, task: Task) -> Row:
    """`row` under its name in this comparison, which it may not have had when it was trained."""
    return Row(**{**vars(row), "mixture": task.candidate.name})


def _print(args: argparse.Namespace, rows: list[Row], search_flops: dict[str, float]) -> None:
    made = figures(rows, list(search_flops.values()))
    counts = [row.tokens for row in rows]
    print()
    # Answer-only rows differ in length, so that equal steps read different numbers of tokens.
    read = " to ".join(f"{tokens:,}" for tokens in sorted({min(counts), max(counts)}))
    print(f"Target loss on the test set, nats per token, after {read} tokens each:")
    print(loss_table(rows))
    print(error_line(rows))
    print(f"one target training: {rows[0].flops:.3g} FLOPs")
    print()
    print(figure_lines(made))
    several = [f"{name} {found}" for name, found in versions(rows).items() if "," in found]
    if several:
        print(f"note: rows were made with different versions: {'; '.join(several)}")
    if args.json:
        write_json(args.json, made, rows)
    if args.plot:
        from megatron_fastmix.lab.comparison.plot import plot_comparison

        plot_comparison(rows, search_flops, Path(args.plot))

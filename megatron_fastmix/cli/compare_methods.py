"""The command `compare-methods`: scenarios × methods × seeds, in rows that stay on disk."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.registry import METHODS, find_mixtures
from megatron_fastmix.lab.benchmarks.table import write_json
from megatron_fastmix.lab.comparison.candidates import Candidate
from megatron_fastmix.lab.comparison.config import Setting
from megatron_fastmix.lab.comparison.inputs import make_setting
from megatron_fastmix.lab.comparison.method_table import MethodLine, figures, make_lines, text
from megatron_fastmix.lab.comparison.row_workers import train_rows
from megatron_fastmix.lab.comparison.rows import Row, Task, borrow_rows, claim_folder, read_rows
from megatron_fastmix.lab.comparison.scenario import Scenario, load_scenario
from megatron_fastmix.lab.jobs import worker_count
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import read_mixture

ROWS = "tools/method_rows"
_OWN = ("mixture", "hypergradient", "engine")
"""Sections that concern FastMix alone."""
_ANYWHERE = ("run_dir", "output")

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
    parser.add_argument("--seeds", type=int, default=3, help="seeds 1 ... of each (default 3)")
    parser.add_argument("--output", default=ROWS, help="finished rows (default %(default)s)")
    parser.add_argument(
        "--work", default="runs/methods", help="proxies and run folders (default %(default)s)"
    )
    parser.add_argument("--workers", type=int, help="trainings at once (default: one per core)")
    parser.add_argument("--search-only", action="store_true", help="train no target models")
    parser.add_argument(
        "--table-only", action="store_true", help="train nothing; show what is there"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
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
            comparison = _Comparison(name, scenario, methods[name], args, workers)
            if not args.table_only:
                comparison.search()
                if not args.search_only:
                    comparison.train()
            tables[name] = comparison.lines()
            print(f"\n{name}, target loss in nats per token:\n{text(tables[name])}\n", flush=True)
    except KeyboardInterrupt:
        print("\nStopped; finished rows stay. The same command goes on from there.")
        return 130
    found = [row for name, lines in tables.items() for row in figures(name, lines)]
    if args.json:
        write_json(args.json, found)
    if args.plot:
        from megatron_fastmix.lab.comparison.method_plot import plot_methods

        plot_methods(tables, Path(args.plot))
    return 0


class _Comparison:
    """The methods and seeds of one scenario."""

    def __init__(
        self,
        name: str,
        scenario: Scenario,
        methods: Sequence[str],
        args: argparse.Namespace,
        workers: int,
    ) -> None:
        self.name, self.scenario, self.workers = name, scenario, workers
        self.folder, self.work = Path(args.output, name), Path(args.work, name)
        self.proxies = Path(args.work, "proxies")
        self.seeds = range(1, args.seeds + 1)
        self.files = {
            (method, seed): self.folder / "searches" / f"{method}-seed{seed}.json"
            for method in methods
            for seed in self.seeds
        }
        self.mixtures = {key: self._read(*key) for key, file in self.files.items() if file.exists()}

    def search(self) -> None:
        """Finds the mixtures that are missing."""
        missing = [
            (*self.scenario.job(method, seed, self.work / file.stem), file)
            for (method, seed), file in self.files.items()
            if (method, seed) not in self.mixtures
        ]
        print(f"{self.name}: {len(missing)} of {len(self.files)} searches to do", flush=True)
        if missing:
            (self.folder / "searches").mkdir(parents=True, exist_ok=True)
            find_mixtures(
                missing,
                self.proxies,
                workers=self.workers,
                report=lambda line: print(f"{self.name}: {line}", flush=True),
            )
        self.mixtures = {key: self._read(*key) for key in self.files}

    def train(self) -> None:
        """Trains the target models that are missing."""
        tasks = list(self._tasks().values())
        rows = self._rows(tasks, borrow=True)
        missing = [task for task in tasks if task.file_name not in rows]
        print(f"{self.name}: {len(missing)} of {len(tasks)} target models to train", flush=True)
        began, done = time.monotonic(), 0

        def finished(task: Task) -> None:
            nonlocal done
            done += 1
            left = (time.monotonic() - began) / done * (len(missing) - done)
            what = f"{task.candidate.name}, seed {task.seed}"
            print(f"[{done}/{len(missing)}] {what}, about {left / 60:.0f} min left", flush=True)

        train_rows(
            self.setting,
            missing,
            self.folder / "targets",
            workers=self.workers,
            finished=finished,
        )

    def lines(self) -> list[MethodLine]:
        """What the finished rows say."""
        if not self.mixtures:
            return []
        tasks = self._tasks()
        rows = self._rows(list(tasks.values()))
        mixtures: dict[str, list[LearnedMixture]] = {}
        found: dict[str, list[Row]] = {}
        for (method, seed), task in tasks.items():
            if task.file_name in rows:
                mixtures.setdefault(method, []).append(self.mixtures[method, seed])
                found.setdefault(method, []).append(rows[task.file_name])
        return make_lines(self.scenario, mixtures, found)

    @cached_property
    def setting(self) -> Setting:
        """What all target models have in common."""
        key = next(iter(self.mixtures))
        return make_setting(self.scenario.compare, self.mixtures[key], str(self.files[key]))

    def _tasks(self) -> dict[tuple[str, int], Task]:
        return {
            (method, seed): Task(candidate=_candidate(method, mixture), seed=seed)
            for (method, seed), mixture in self.mixtures.items()
        }

    def _rows(self, tasks: Sequence[Task], *, borrow: bool = False) -> dict[str, Row]:
        folder = self.folder / "targets"
        folder.mkdir(parents=True, exist_ok=True)
        claim_folder(folder, self.setting)
        if borrow:
            others = sorted(set(self.folder.parent.glob("*/targets")) - {folder})
            borrow_rows(folder, others, self.setting, tasks)
        return read_rows(folder, self.setting, tasks)

    def _read(self, method: str, seed: int) -> LearnedMixture:
        """A finished search. Raises `ConfigError` where it was of another configuration."""
        file = self.files[method, seed]
        mixture = read_mixture(file)
        now = strict_yaml.to_dict(self.scenario.searches[method])
        now["seed"] = mixture.seed
        # Keys that are younger than the row had their defaults.
        then = strict_yaml.to_dict(strict_yaml.from_dict(SearchConfig, mixture.config))
        for key in now.keys() - set(_ANYWHERE):
            own = key in _OWN and mixture.estimator in METHODS
            if not own and now[key] != then[key]:
                raise ConfigError(
                    f"{file}: was searched with {key} {then[key]}, the scenario has "
                    f"{now[key]}; delete the file to search anew, or choose another --output"
                )
        return mixture


def _candidate(method: str, mixture: LearnedMixture) -> Candidate:
    rounded = mixture.rounded("loss_tokens")
    return Candidate(
        name=method,
        kind=method,
        weights={source: share for source, share in rounded.items() if float(share) > 0},
        search_flops=mixture.cost["training_flops"],
    )

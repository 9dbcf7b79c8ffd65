"""The methods and seeds of one scenario: searches, then target models, in rows that stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from megatron_fastmix.config import SearchConfig, TrainingConfig, strict_yaml
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.lab.baselines.registry import find_mixtures, settings_of
from megatron_fastmix.lab.baselines.settings import BaselineSettings
from megatron_fastmix.lab.comparison.candidates import Candidate
from megatron_fastmix.lab.comparison.config import Setting, flatten, key_of
from megatron_fastmix.lab.comparison.derived import has_trajectory, weight_schedule
from megatron_fastmix.lab.comparison.inputs import check_setting
from megatron_fastmix.lab.comparison.method_lines import MethodLine, make_lines
from megatron_fastmix.lab.comparison.row_file import Record
from megatron_fastmix.lab.comparison.row_workers import SAVE_INTERVAL, train_rows
from megatron_fastmix.lab.comparison.rows import Row, RowFile, SearchRow, Task
from megatron_fastmix.lab.comparison.same_search import (
    configuration_of,
    differences,
    find_same,
    kept_configuration,
)
from megatron_fastmix.lab.comparison.scenario import Scenario
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.rounding import written_weights


class MethodComparison:
    """The methods and seeds of one scenario."""

    def __init__(
        self,
        name: str,
        scenario: Scenario,
        methods: Sequence[str],
        *,
        seeds: int,
        rows: Path,
        work: Path,
        workers: int,
        save_interval: int = SAVE_INTERVAL,
    ) -> None:
        """Seeds 1 … `seeds` of each method, or more where the scenario says so; `rows` is the
        folder of finished rows, `work` that of proxies, run folders and checkpoints of target
        models, one every `save_interval` steps.

        Raises `ConfigError` where rows are there and of another scenario, and `DataError`.
        """
        self.name, self.scenario, self.workers = name, scenario, workers
        self.save_interval = save_interval
        self.file = RowFile(rows / f"{name}.jsonl")
        self.work, self.proxies = work / name, work / "proxies"
        self.wanted = [
            (method, seed)
            for method in methods
            for seed in range(1, max(seeds, scenario.seeds.get(method, 1)) + 1)
        ]
        self._check_rows()

    def claim(self) -> Setting:
        """Takes the rows' file for this scenario's target models, before hours of searches.

        Raises `ConfigError` where it holds those of other models or datasets, and what reading the
        datasets raises.
        """
        search = self.scenario.search
        setting = check_setting(
            self.scenario.compare,
            sources={source.name: source.prefixes() for source in search.sources},
            targets={target.name: target.prefixes() for target in search.targets},
            tokenizer_config=search.tokenizer,
            seq_length=search.data.seq_length,
            data=strict_yaml.to_dict(search.data),
        )
        self.file.claim(setting)
        return setting

    def search(self) -> None:
        """Finds the mixtures that are missing. Raises what `find_mixtures` raises."""
        self._borrow_searches()
        there = self.file.read().searches
        missing = [key for key in self.wanted if key not in there]
        derived = [key for key in missing if self.scenario.derived_of(key[0])]
        bases = list(dict.fromkeys(self._base(*key) for key in derived))
        plain = [key for key in (*missing, *bases) if key not in there and key not in derived]
        files = {self._result(*key): key for key in plain}
        self.work.mkdir(parents=True, exist_ok=True)
        for file, key in list(files.items()):
            if self._found_before(file, *key):  # and stopped before its row was written
                self._add(file, *key)
                del files[file]
        files |= {
            self._result(*base): base
            for key, base in ((key, self._base(*key)) for key in derived)
            # Of a search whose row is of another machine there may be no run folder.
            if self._needs_folder(key[0]) and not self._has_trajectory(*base)
        }
        print(f"{self.name}: {len(files)} of {len(self.wanted)} searches to do", flush=True)
        jobs = [
            (*self.scenario.job(*key, self.work / file.stem), file) for file, key in files.items()
        ]
        find_mixtures(
            jobs,
            self.proxies,
            workers=self.workers,
            settings=self.scenario.baselines,
            report=lambda line: print(f"{self.name}: {line}", flush=True),
            finished=lambda file: self._add(file, *files[file]),
        )
        for key in derived:
            self._derive(*key)

    def train(self, setting: Setting) -> None:
        """Trains the target models that are missing. Raises what `train_rows` raises."""
        tasks = list(self._tasks().values())
        self.file.borrow(self._others(), tasks)
        train_rows(
            setting,
            tasks,
            self.file,
            workers=self.workers,
            keep_samples=False,
            checkpoints=self.work / "trainings",
            save_interval=self.save_interval,
        )

    def lines(self) -> list[MethodLine]:
        """What the finished rows say; reads no dataset."""
        rows = self.file.read()
        searches: dict[str, list[SearchRow]] = {}
        trainings: dict[str, list[Row]] = {}
        for (method, seed), task in self._tasks().items():
            if task.key in rows.trainings:
                searches.setdefault(method, []).append(rows.searches[method, seed])
                trainings.setdefault(method, []).append(rows.trainings[task.key])
        return make_lines(self.scenario, searches, trainings)

    def _tasks(self) -> dict[tuple[str, int], Task]:
        searches, training = self.file.read().searches, self.scenario.compare.training
        return {
            key: Task(candidate=_candidate(searches[key], training), seed=key[1])
            for key in self.wanted
            if key in searches
        }

    def _others(self) -> list[RowFile]:
        """Rows of other scenarios in the same folder."""
        files = sorted(set(self.file.path.parent.glob("*.jsonl")) - {self.file.path})
        return [RowFile(file) for file in files]

    def _borrow_searches(self) -> None:
        """Takes up finished searches of other scenarios that would come out the same here."""
        there = self.file.read().searches
        bases = [self._base(*key) for key in self.wanted if self.scenario.derived_of(key[0])]
        missing = [key for key in dict.fromkeys([*self.wanted, *bases]) if key not in there]
        others = [other.read() for other in self._others()] if missing else []
        for method, seed in missing:
            config = self.scenario.searches[method]
            for rows in others:
                row = find_same(rows, method, seed, config, self._settings(method))
                if row is not None:
                    now = configuration_of(config)
                    mine = dataclasses.replace(row, method=method, configuration=key_of(now))
                    self.file.add_search(mine, now)
                    break

    def _base(self, method: str, seed: int) -> tuple[str, int]:
        """The search that a derived mixture is made from."""
        derived = self.scenario.derived_of(method)
        assert derived is not None
        return derived.of, seed

    def _needs_folder(self, method: str) -> bool:
        derived = self.scenario.derived_of(method)
        return derived is not None and derived.needs_trajectory

    def _has_trajectory(self, method: str, seed: int) -> bool:
        result = self._result(method, seed)
        return self._found_before(result, method, seed) and has_trajectory(result)

    def _derive(self, method: str, seed: int) -> None:
        derived = self.scenario.derived_of(method)
        assert derived is not None
        base = self._base(method, seed)
        config = self.scenario.searches[method]
        row = derived.row(
            self.file.read().searches[base], config, self._result(*base), self._train_tokens
        )
        # The base may be of a version whose configurations had other keys.
        now = configuration_of(config)
        self.file.add_search(dataclasses.replace(row, configuration=key_of(now)), now)

    @property
    def _train_tokens(self) -> int:
        """Tokens that a target model is trained on, where sources are text."""
        compare = self.scenario.compare
        seq_length = compare.seq_length or self.scenario.search.data.seq_length
        training = compare.training
        return training.train_iters * training.global_batch_size * seq_length

    def _add(self, file: Path, method: str, seed: int) -> None:
        configuration = configuration_of(self.scenario.searches[method])
        row = _search_row(
            read_mixture(file), method, seed, key_of(configuration), self._settings(method)
        )
        self.file.add_search(row, configuration)

    def _settings(self, method: str) -> Record:
        """The method's own hyper-parameters."""
        derived = self.scenario.derived_of(method)
        if derived is not None:
            return derived.settings(self._train_tokens)
        return settings_of(method, self.scenario.baselines)

    def _stem(self, method: str, seed: int) -> str:
        """Name of a search's files; one with other hyper-parameters has others."""
        settings = self._settings(method)
        usual = settings == settings_of(method, BaselineSettings())
        return f"{method}-seed{seed}" + ("" if usual else f"-{key_of(settings)}")

    def _result(self, method: str, seed: int) -> Path:
        """Where a search leaves its mixture."""
        return self.work / f"{self._stem(method, seed)}.json"

    def _found_before(self, file: Path, method: str, seed: int) -> bool:
        if not file.exists():
            return False
        try:
            found = read_mixture(file)
            config: SearchConfig = strict_yaml.from_dict(SearchConfig, found.config)
        except (ConfigError, DataError):
            return False
        now = configuration_of(self.scenario.searches[method])
        return found.complete and config.seed == seed and configuration_of(config) == now

    def _check_rows(self) -> None:
        rows = self.file.read()
        kept = {
            key: kept_configuration(values, self.file.path)
            for key, values in rows.configurations.items()
        }
        for method, seed in self.wanted:
            if (method, seed) not in rows.searches:
                continue
            row = rows.searches[method, seed]
            then = kept[row.configuration]
            config, own = self.scenario.searches[method], self._settings(method)
            for key, before, after in differences(method, config, own, row, then):
                raise ConfigError(
                    f"{self.file.path}: {method}, seed {seed}, was searched with {key} "
                    f"{before}, the scenario has {after}; delete its line to search "
                    "anew, or choose another --output"
                )
        if rows.setting:
            compare = self.scenario.compare
            whole = sum(test.weight for test in compare.tests)
            now = {
                "model": strict_yaml.to_dict(compare.model),
                "training": strict_yaml.to_dict(compare.training),
                "eval_samples": compare.eval_samples,
                "seq_length": compare.seq_length or self.scenario.search.data.seq_length,
                "tests": {test.name: {"weight": test.weight / whole} for test in compare.tests},
            }
            now = flatten(now)
            # What lies in the datasets is compared when they are read.
            weights = {k for k in rows.setting if k.startswith("tests.") and k.endswith(".weight")}
            self.file.check({key: rows.setting.get(key) for key in now.keys() | weights}, now)


def _search_row(
    mixture: LearnedMixture, method: str, seed: int, configuration: str, settings: Record
) -> SearchRow:
    return SearchRow(
        configuration=configuration,
        method=method,
        seed=seed,
        weights=mixture.weights,
        weight_std={source.name: source.weight_std for source in mixture.sources},
        flops=mixture.cost["training_flops"],
        wall_seconds=mixture.cost["wall_seconds"],
        tokens=int(mixture.cost["tokens"]),
        versions=mixture.versions,
        settings=settings,
    )


def _candidate(row: SearchRow, training: TrainingConfig) -> Candidate:
    return Candidate(
        name=row.method,
        kind=row.method,
        weights=written_weights(row.weights),
        search_flops=row.flops,
        schedule=weight_schedule(row.schedule, training),
    )

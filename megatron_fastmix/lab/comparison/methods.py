"""The methods and seeds of one scenario: searches, then target models, in rows that stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.lab.baselines.registry import BASELINES, FREE, find_mixtures, settings_of
from megatron_fastmix.lab.baselines.settings import BaselineSettings
from megatron_fastmix.lab.comparison.candidates import Candidate
from megatron_fastmix.lab.comparison.config import flatten, key_of
from megatron_fastmix.lab.comparison.inputs import check_setting
from megatron_fastmix.lab.comparison.method_table import MethodLine, make_lines
from megatron_fastmix.lab.comparison.row_file import Record
from megatron_fastmix.lab.comparison.row_workers import train_rows
from megatron_fastmix.lab.comparison.rows import Row, RowFile, SearchRow, Task
from megatron_fastmix.lab.comparison.scenario import Scenario
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.rounding import round_weights

OWN_SECTIONS = ("mixture", "hypergradient", "engine")
"""Sections that concern FastMix alone."""
ANYWHERE = ("run_dir", "output", "seed")
"""Keys of a search that are no part of its row's configuration."""


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
    ) -> None:
        """Seeds 1 … `seeds` of each method, or more where the scenario says so; `rows` is the
        folder of finished rows, `work` that of proxies and run folders.

        Raises `ConfigError` where rows are there and of another scenario, and `DataError`.
        """
        self.name, self.scenario, self.workers = name, scenario, workers
        self.file = RowFile(rows / f"{name}.jsonl")
        self.work, self.proxies = work / name, work / "proxies"
        self.wanted = [
            (method, seed)
            for method in methods
            for seed in range(1, max(seeds, scenario.seeds.get(method, 1)) + 1)
        ]
        self._check_rows()

    def search(self) -> None:
        """Finds the mixtures that are missing. Raises what `find_mixtures` raises."""
        files = {
            self.work / f"{self._stem(method, seed)}.json": (method, seed)
            for method, seed in self.wanted
            if (method, seed) not in self.file.read().searches
        }
        self.work.mkdir(parents=True, exist_ok=True)
        for file, key in list(files.items()):
            if self._found_before(file, *key):  # and stopped before its row was written
                self._add(file, *key)
                del files[file]
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

    def train(self) -> None:
        """Trains the target models that are missing. Raises what `train_rows` raises."""
        search = self.scenario.search
        setting = check_setting(
            self.scenario.compare,
            sources=search.sources,
            targets=search.targets,
            tokenizer_config=search.tokenizer,
            seq_length=search.data.seq_length,
        )
        self.file.claim(setting)
        tasks = list(self._tasks().values())
        others = sorted(set(self.file.path.parent.glob("*.jsonl")) - {self.file.path})
        self.file.borrow([RowFile(other) for other in others], tasks)
        train_rows(setting, tasks, self.file, workers=self.workers, keep_samples=False)

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
        searches = self.file.read().searches
        return {
            key: Task(candidate=_candidate(searches[key]), seed=key[1])
            for key in self.wanted
            if key in searches
        }

    def _add(self, file: Path, method: str, seed: int) -> None:
        configuration = _configuration(self.scenario.searches[method])
        row = _search_row(
            read_mixture(file), method, seed, key_of(configuration), self._settings(method)
        )
        self.file.add_search(row, configuration)

    def _settings(self, method: str) -> Record:
        """The method's own hyper-parameters."""
        return settings_of(method, self.scenario.baselines)

    def _stem(self, method: str, seed: int) -> str:
        """Name of a search's files; one with other hyper-parameters has others."""
        settings = self._settings(method)
        usual = settings == settings_of(method, BaselineSettings())
        return f"{method}-seed{seed}" + ("" if usual else f"-{key_of(settings)}")

    def _found_before(self, file: Path, method: str, seed: int) -> bool:
        if not file.exists():
            return False
        try:
            config = strict_yaml.from_dict(SearchConfig, read_mixture(file).config)
        except (ConfigError, DataError):
            return False
        now = _configuration(self.scenario.searches[method])
        return config.seed == seed and _configuration(config) == now

    def _check_rows(self) -> None:
        rows = self.file.read()
        kept = {
            key: _configuration(_config(values, self.file.path))
            for key, values in rows.configurations.items()
        }
        for method, seed in self.wanted:
            if (method, seed) not in rows.searches:
                continue
            row = rows.searches[method, seed]
            then = kept[row.configuration]
            now = _configuration(self.scenario.searches[method])
            pairs = [(key, then[key], now[key]) for key in now if _matters(method, key)]
            usual, own = settings_of(method, BaselineSettings()), self._settings(method)
            for section, values in own.items():
                before = usual[section] | row.settings.get(section, {})
                pairs.append((section, before, values))
            for key, before, after in pairs:
                if before != after:
                    raise ConfigError(
                        f"{self.file.path}: {method}, seed {seed}, was searched with {key} "
                        f"{before}, the scenario has {after}; delete its line to search "
                        "anew, or choose another --output"
                    )
        if rows.setting:
            compare = self.scenario.compare
            now = {
                "model": strict_yaml.to_dict(compare.model),
                "training": strict_yaml.to_dict(compare.training),
                "eval_samples": compare.eval_samples,
                "seq_length": compare.seq_length or self.scenario.search.data.seq_length,
            }
            now = flatten(now)
            # What lies in the datasets is compared when they are read.
            self.file.check({key: rows.setting.get(key) for key in now}, now)


def _matters(method: str, key: str) -> bool:
    """Whether a method's mixture depends on a section of the search's configuration."""
    if method in FREE:
        return key == "sources"
    return not (method in BASELINES and key in OWN_SECTIONS)


def _configuration(config: SearchConfig) -> Record:
    """What a search's outcome depends on, besides its seed."""
    values = strict_yaml.to_dict(config)
    return {key: value for key, value in values.items() if key not in ANYWHERE}


def _config(values: Record, path: Path) -> SearchConfig:
    """Keys that are younger than the row have their defaults."""
    try:
        config: SearchConfig = strict_yaml.from_dict(SearchConfig, {"run_dir": ".", **values})
    except ConfigError as error:
        raise DataError(f"{path}: a configuration: {error}") from None
    return config


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


def _candidate(row: SearchRow) -> Candidate:
    rounded = round_weights(row.weights)
    return Candidate(
        name=row.method,
        kind=row.method,
        weights={source: share for source, share in rounded.items() if float(share) > 0},
        search_flops=row.flops,
    )

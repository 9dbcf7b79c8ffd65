"""What comparisons have finished, a row each, in one JSONL file of one setting.

A row names by a short key the values that it shares with others, which stand once, before it: the
`setting` of the target models, or the `configuration` of a search.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_fastmix.config import strict_yaml
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.lab.comparison.candidates import Candidate, mixture_key
from megatron_fastmix.lab.comparison.config import Setting, key_of, with_defaults
from megatron_fastmix.lab.comparison.row_file import Record, append_records, read_records

FORMAT = "megatron_fastmix.rows"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """A row to be trained."""

    candidate: Candidate
    seed: int
    """Of the model's initial weights and of the data order."""

    @property
    def key(self) -> str:
        return _task_key(self.candidate.key, self.seed)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The outcome of one training of the target model."""

    setting: str
    """Key of the setting."""
    mixture: str
    kind: str
    seed: int
    loss: float
    """Nats per token on the tests, weighted."""
    train_loss: float
    """Nats per token of the training data, mean over the last tenth of the steps."""
    tokens: int
    """Tokens trained on."""
    flops: float
    """Floating-point operations of the training, evaluation not counted."""
    wall_seconds: float
    device: str
    weights: dict[str, str]
    losses: dict[str, float]
    """Nats per token by test."""
    sample_losses: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Loss of each evaluated sample over the mean number of tokens, by test, the same samples in
    every row; empty where they were not kept."""
    sample_sizes: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """By test with samples of unequal length: each one's tokens in the loss over their mean."""
    versions: dict[str, str]
    exact_match: dict[str, float] = field(default_factory=dict)
    """By answer-only test: share of the answers that greedy decoding gives."""
    schedule_key: str = ""
    """Of the weights' schedule, where they changed during the training and `weights` are their
    mean: that of its search's row."""

    @property
    def key(self) -> str:
        """That of its `Task`."""
        return _task_key(mixture_key(self.kind, self.weights, self.schedule_key), self.seed)


def _task_key(mixture: str, seed: int) -> str:
    return f"{mixture}-seed{seed}"


@dataclass(frozen=True, kw_only=True)
class Held:
    """Weights of a schedule that is not yet one of samples."""

    at: float
    """From this part of the training on, 0 to 1."""
    weights: dict[str, float]
    """By source."""


@dataclass(frozen=True, kw_only=True)
class SearchRow:
    """The outcome of one search."""

    configuration: str
    """Key of the configuration."""
    method: str
    """Of the registry, or a variant of FastMix."""
    seed: int
    weights: dict[str, float]
    """The mixture by source; the sum is 1."""
    weight_std: dict[str, float]
    """Standard deviation of each weight over the averaged part of the search."""
    flops: float
    """Floating-point operations of everything that the search trained and evaluated."""
    wall_seconds: float
    """In one process."""
    tokens: int
    """Tokens trained on."""
    versions: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    """Hyper-parameters of the method by section; keys that are younger than the row have their
    defaults."""
    schedule: tuple[Held, ...] = ()
    """Weights that change during a training, the first from 0 on; `weights` are then their mean.
    Empty for a static mixture."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """All that a file holds."""

    setting: Record
    """`Setting.identity` of the trainings; empty before the first. Keys that are younger than the
    file have their defaults."""
    setting_key: str
    configurations: dict[str, Record]
    """By key."""
    searches: dict[tuple[str, int], SearchRow]
    """By method and seed."""
    trainings: dict[str, Row]
    """By `Row.key`."""

    def of(self, tasks: Sequence[Task]) -> dict[str, Row]:
        """The finished ones among `tasks`, by key."""
        return {task.key: self.trainings[task.key] for task in tasks if task.key in self.trainings}


@dataclass(frozen=True)
class RowFile:
    """Rows on disk. Any number of processes may add to them; the first of equal rows stays."""

    path: Path

    def read(self) -> Rows:
        """Raises `DataError` for a damaged line or a file of another version."""
        return _parse(read_records(self.path), self.path)

    def claim(self, setting: Setting) -> None:
        """Takes the file for trainings of `setting`.

        Raises `ConfigError` that names what differs where it holds rows of another setting.
        """

        def make(records: list[Record]) -> list[Record]:
            rows = _parse(records, self.path)
            if rows.setting:
                self.check(rows.setting, with_defaults(_plain(setting.identity())))
                return []
            return _side("setting", setting.digest, _plain(setting.identity()))

        self._append(make)

    def check(self, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Raises `ConfigError` that names what differs between the setting of the rows and now."""
        differing = sorted(key for key in kept.keys() | now.keys() if kept.get(key) != now.get(key))
        if differing:
            lines = "\n".join(
                f"  {key}: {kept.get(key)!r} there, {now.get(key)!r} now" for key in differing
            )
            raise ConfigError(
                f"{self.path}: holds rows of another setting, which cannot be compared with new "
                f"ones; choose another --output or set these back:\n{lines}"
            )

    def add(self, *rows: Row) -> None:
        """Appends trainings of the setting that the file was claimed for."""

        def make(records: list[Record]) -> list[Record]:
            there = _parse(records, self.path)
            return [
                _record("training", dataclasses.replace(row, setting=there.setting_key))
                for row in rows
                if row.key not in there.trainings
            ]

        self._append(make)

    def add_search(self, row: SearchRow, configuration: Record) -> None:
        """Appends a search, and the configuration where it is new."""
        assert row.configuration == key_of(configuration)

        def make(records: list[Record]) -> list[Record]:
            there = _parse(records, self.path)
            if (row.method, row.seed) in there.searches:
                return []
            new = row.configuration not in there.configurations
            side = _side("configuration", row.configuration, configuration) if new else []
            return [*side, _record("search", row)]

        self._append(make)

    def borrow(self, others: Sequence[RowFile], tasks: Sequence[Task]) -> None:
        """Copies the finished rows among `tasks` that this file lacks from those of `others` that
        hold the same setting: a mixture that does not depend on the objective is trained once."""
        mine = self.read()
        for other in others:
            found = other.read()
            if found.setting == mine.setting:
                self.add(*found.of(tasks).values())

    def _append(self, make: Any) -> None:
        def with_head(records: list[Record]) -> list[Record]:
            head = [] if records else [{"record": "head", "format": FORMAT, "version": VERSION}]
            return head + make(records)

        append_records(self.path, with_head)


def _side(record: str, key: str, values: Record) -> list[Record]:
    return [{"record": record, "key": key, "values": values}]


def _record(record: str, row: Row | SearchRow) -> Record:
    values = strict_yaml.to_dict(row)
    # Empty in most rows, which is their default.
    for key in (
        "sample_losses",
        "sample_sizes",
        "exact_match",
        "settings",
        "schedule",
        "schedule_key",
    ):
        if not values.get(key):
            values.pop(key, None)
    return {"record": record, **values}


def _plain(values: Any) -> Any:
    """As it reads back from JSON."""
    return json.loads(json.dumps(values))


def _parse(records: Sequence[Record], path: Path) -> Rows:
    head = {"record": "head", "format": FORMAT, "version": VERSION}
    if records and records[0] != head:
        raise DataError(f"{path}:1: found {records[0]}; expected {head}: not rows of this version")
    sides: dict[str, dict[str, Record]] = {"setting": {}, "configuration": {}}
    searches: dict[tuple[str, int], SearchRow] = {}
    trainings: dict[str, Row] = {}
    for number, record in enumerate(records[1:], start=2):
        what = record.get("record")
        values = {key: value for key, value in record.items() if key != "record"}
        try:
            if what in sides:
                side = strict_yaml.from_dict(_Side, values)
                sides[what][side.key] = side.values
            elif what == "search":
                search = strict_yaml.from_dict(SearchRow, values)
                _require_side(search.configuration, sides["configuration"])
                searches.setdefault((search.method, search.seed), search)
            elif what == "training":
                row = strict_yaml.from_dict(Row, values)
                _require_side(row.setting, sides["setting"])
                trainings.setdefault(row.key, row)
            else:
                raise ConfigError(f"record: found {what!r}; expected search or training")
        except ConfigError as error:
            raise DataError(f"{path}:{number}: {error}; delete the line to make it anew") from None
    settings = sides["setting"]
    if len(settings) > 1:
        raise DataError(f"{path}: holds {len(settings)} settings; rows of one can be compared")
    key, setting = next(iter(settings.items()), ("", {}))
    return Rows(
        setting=with_defaults(setting) if setting else {},
        setting_key=key,
        configurations=sides["configuration"],
        searches=searches,
        trainings=trainings,
    )


@dataclass(frozen=True, kw_only=True)
class _Side:
    key: str
    values: dict[str, Any]


def _require_side(key: str, there: Mapping[str, Record]) -> None:
    if key not in there:
        raise ConfigError(f"belongs to {key!r}, which does not stand before it")

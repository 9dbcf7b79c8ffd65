"""Finished rows on disk: one JSON file for each mixture and seed, in a folder of one setting."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.config import strict_yaml
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.lab.comparison.candidates import Candidate
from megatron_fastmix.lab.comparison.config import Setting

SETTING_FILE = "setting.json"
FORMAT = "megatron_fastmix.evidence_row"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """A row to be trained."""

    candidate: Candidate
    seed: int
    """Of the model's initial weights and of the data order."""

    @property
    def file_name(self) -> str:
        return f"{self.candidate.key}-seed{self.seed}.json"


@dataclass(frozen=True, kw_only=True)
class _TypedPart:
    format: str = FORMAT
    version: int = VERSION
    setting: str
    """Digest of the setting."""
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


@dataclass(frozen=True, kw_only=True)
class Row(_TypedPart):
    """The outcome of one training."""

    weights: dict[str, str]
    losses: dict[str, float]
    """Nats per token by test."""
    sample_losses: dict[str, list[float]]
    """Mean loss of each evaluated sample by test, the same samples in every row."""
    test_weights: dict[str, float]
    """Share of each test in `loss`."""
    versions: dict[str, str]
    exact_match: dict[str, float] = dataclasses.field(default_factory=dict)
    """By answer-only test: share of the answers that greedy decoding gives."""


def claim_folder(folder: Path, setting: Setting) -> None:
    """Makes `folder` for rows of `setting`.

    Raises `ConfigError` that names what differs where it holds rows of another setting.
    """
    file = folder / SETTING_FILE
    identity = json.loads(json.dumps(setting.identity()))
    if file.exists():
        kept = _load(file)
        differing = sorted(
            key for key in identity.keys() | kept.keys() if identity.get(key) != kept.get(key)
        )
        if differing:
            lines = "\n".join(
                f"  {key}: {kept.get(key)!r} there, {identity.get(key)!r} now" for key in differing
            )
            raise ConfigError(
                f"{folder}: holds rows of another setting, which cannot be compared with new ones; "
                f"choose another --output or set these back:\n{lines}"
            )
    else:
        if any(folder.glob("*-seed*.json")):
            raise ConfigError(f"{folder}: has rows but no {SETTING_FILE}; choose another --output")
        write_atomically(file, json.dumps(identity, indent=2, ensure_ascii=False) + "\n")


def borrow_rows(
    folder: Path, others: Sequence[Path], setting: Setting, tasks: Sequence[Task]
) -> None:
    """Copies the finished rows among `tasks` that `folder` lacks from those of `others` that hold
    the same setting: a mixture that does not depend on the objective is trained once for all."""
    identity = json.loads(json.dumps(setting.identity()))
    for other in others:
        kept = other / SETTING_FILE
        if not kept.exists() or _load(kept) != identity:
            continue
        for task in tasks:
            found, wanted = other / task.file_name, folder / task.file_name
            if found.exists() and not wanted.exists():
                write_atomically(wanted, found.read_text(encoding="utf-8"))


def write_row(folder: Path, task: Task, row: Row) -> None:
    """Writes a finished row, atomically. `ValueError` for NaN or Inf."""
    text = json.dumps(dataclasses.asdict(row), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / task.file_name, text + "\n")


def read_rows(folder: Path, setting: Setting, tasks: Sequence[Task]) -> dict[str, Row]:
    """The finished rows among `tasks`, by file name. Raises `DataError` for a damaged one."""
    rows = {}
    for task in tasks:
        file = folder / task.file_name
        if file.exists():
            row = _read_row(file)
            found = (row.setting, row.weights, row.seed)
            if found != (setting.digest, task.candidate.weights, task.seed):
                raise DataError(f"{file}: a row of another comparison; delete it to train it anew")
            rows[task.file_name] = row
    return rows


def _read_row(file: Path) -> Row:
    values = {"exact_match": {}} | _load(file)  # absent from the first rows
    plain = ("weights", "losses", "sample_losses", "exact_match", "test_weights", "versions")
    typed_values = {key: value for key, value in values.items() if key not in plain}
    try:
        typed = strict_yaml.from_dict(_TypedPart, typed_values)
    except ConfigError as error:
        raise DataError(f"{file}: {error}; delete the row to train it anew") from None
    missing = [key for key in plain if not isinstance(values.get(key), dict)]
    if missing or (typed.format, typed.version) != (FORMAT, VERSION):
        raise DataError(f"{file}: not a row of this version; delete it to train it anew")
    return Row(**strict_yaml.to_dict(typed), **{key: values[key] for key in plain})


def _load(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}; delete it to train it anew") from None
    if not isinstance(values, dict):
        raise DataError(f"{file}: not a JSON object; delete it to train it anew")
    return values

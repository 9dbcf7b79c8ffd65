"""Weights by consumed samples, in a file that people write and read.

    schedule:
      - at_sample: 0
        weights: {web: 0.7, code: 0.3}
      - at_sample: 1048576
        weights: {web: 0.4, code: 0.6}

Weights are shares of samples of `seq_length` tokens, of any sum, as on Megatron's command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.blend.shares import normalized
from megatron_fastmix.config import strict_yaml
from megatron_fastmix.errors import ConfigError, DataError

_LARGEST = 2**62
"""More samples than any run has; beyond it their arithmetic would overflow."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One entry of a schedule."""

    at_sample: int
    """The first training sample that these weights hold for."""
    weights: Mapping[str, float]
    """By source name; they hold until the next change."""


@dataclass(frozen=True, kw_only=True)
class WeightSchedule:
    """Weights of the same sources that follow each other, the first from sample 0 on."""

    changes: tuple[Change, ...]

    def __post_init__(self) -> None:
        if not self.changes or self.changes[0].at_sample != 0:
            found = self.changes[0].at_sample if self.changes else "no entry"
            raise ConfigError(f"schedule: the first entry: found {found}; expected at_sample: 0")
        for number, (one, two) in enumerate(zip(self.changes, self.changes[1:], strict=False), 1):
            if two.at_sample <= one.at_sample:
                raise ConfigError(
                    f"schedule[{number}].at_sample: found {two.at_sample} after {one.at_sample}; "
                    "entries follow each other by consumed samples"
                )
        for number, change in enumerate(self.changes):
            if set(change.weights) != set(self.names):
                raise ConfigError(
                    f"schedule[{number}].weights: found {', '.join(change.weights)}; every entry "
                    f"names the same sources: {', '.join(self.names)} (0 leaves one out)"
                )
            try:
                normalized([change.weights[name] for name in self.names])
            except ValueError as error:
                raise ConfigError(f"schedule[{number}].{error}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """The sources, in the order of the first entry."""
        return tuple(self.changes[0].weights)

    def write(self, path: str | Path) -> None:
        """Writes the YAML that `read_schedule` reads, atomically; floats read back bit for bit."""
        entries = [{"at_sample": c.at_sample, "weights": dict(c.weights)} for c in self.changes]
        write_atomically(path, yaml.safe_dump({"schedule": entries}, sort_keys=False))


def read_schedule(path: str | Path) -> WeightSchedule:
    """Reads a schedule. Raises `DataError` that names the file, the entry and the value."""
    try:
        values = strict_yaml.load_yaml(path)
        if set(values) != {"schedule"} or not isinstance(values["schedule"], list):
            raise ConfigError(f"expected one key, schedule, with a list; found {list(values)}")
        return WeightSchedule(changes=_changes(values["schedule"]))
    except ConfigError as error:
        message = str(error)
        where = "" if message.startswith(str(path)) else f"{path}: "
        raise DataError(f"{where}{message}") from None


def _changes(entries: Sequence[Any]) -> tuple[Change, ...]:
    changes = []
    for number, entry in enumerate(entries):
        at = f"schedule[{number}]"
        if not isinstance(entry, dict) or set(entry) != {"at_sample", "weights"}:
            raise ConfigError(f"{at}: found {entry!r}; expected the keys at_sample and weights")
        sample, weights = entry["at_sample"], entry["weights"]
        if type(sample) is not int or not 0 <= sample < _LARGEST:
            raise ConfigError(f"{at}.at_sample: found {sample!r}; expected a whole number, 0 or up")
        if not isinstance(weights, dict) or not weights:
            raise ConfigError(f"{at}.weights: found {weights!r}; expected weights by source name")
        numbers = {}
        for name, text in weights.items():
            value = strict_yaml.parse_scalar(text, at) if isinstance(text, str) else text
            strict_yaml.check_type(float, value, f"{at}.weights.{name}")
            if str(name) in numbers:
                raise ConfigError(f"{at}.weights: {name} is named twice; name it once")
            numbers[str(name)] = float(value)
        changes.append(Change(at_sample=sample, weights=numbers))
    return tuple(changes)

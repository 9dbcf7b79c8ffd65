"""`mixture.json`: the result of a search, complete enough to be used without the run.

Weights are shares of samples of `seq_length` tokens, the unit of Megatron's blend weights; those of
answer-only sources are shares of answer tokens, with the shares of rows beside them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.config import strict_yaml
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.run.folder import RunFolder

FORMAT = "megatron_fastmix.mixture"
VERSION = 1
UNIT = "share of samples of seq_length tokens"
ANSWER_UNIT = "share of answer tokens"
"""Unit of the weights of answer-only sources."""
SUM_TOLERANCE = 1e-9


def epochs_implied(weight: float, tokens: int, token_budget: int) -> float:
    """How often a source of `tokens` tokens is seen when `token_budget` tokens are trained on."""
    return weight * token_budget / tokens


@dataclass(frozen=True, kw_only=True)
class SourceWeight:
    """One source of the mixture."""

    name: str
    path: str
    """Prefix of the indexed dataset, without .bin and .idx."""
    tokens: int
    """Tokens of the whole dataset."""
    documents: int
    """Documents of the whole dataset."""
    initial_weight: float
    final_weight: float
    """Weight after the last outer step."""
    weight: float
    """The learned weight: the average of the iterates of the averaging tail."""
    weight_std: float
    """Standard deviation of the weight over the averaging tail; 0 where it has one iterate. Where
    several seeds ran, over the seeds."""
    logit: float
    """z after the last outer step."""
    epochs: float
    """Epochs of this source in `token_budget` tokens at `weight`."""
    rows: int | None = None
    """Rows with an answer, of an answer-only source."""
    answer_tokens: int | None = None
    """Tokens of those rows that count in the loss."""
    row_weight: float | None = None
    """The share of rows that gives `weight` as the share of answer tokens."""


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """One held-out target."""

    name: str
    path: str
    tokens: int
    weight: float
    """ω, the target's share in the target loss."""
    initial_loss: float | None
    """Nats per token at the first outer step; null where none was measured."""
    final_loss: float | None
    """Nats per token at the last outer step; null where none was measured."""


@dataclass(frozen=True, kw_only=True)
class _TypedPart:
    """The keys of the file whose types `strict_yaml` checks."""

    format: str = FORMAT
    version: int = VERSION
    unit: str = UNIT
    seq_length: int
    complete: bool
    """False where the run was stopped before its last step."""
    steps: int
    """Optimizer steps done."""
    outer_steps: int
    """Steps of the mixture done."""
    averaging_fraction: float
    """The learned weights average the iterates of this last part of the run."""
    averaged_outer_steps: int
    """How many iterates that is."""
    token_budget: int
    """Tokens of the run to come, for which `epochs` are given; answer tokens under that unit."""
    seed: int
    """Seed of the search; the first of several."""
    seeds: tuple[int, ...] = ()
    """Seeds of the searches that the weights average; empty for a single search."""
    estimator: str
    """Name of the hypergradient estimator."""
    sources: tuple[SourceWeight, ...]
    targets: tuple[TargetResult, ...]


@dataclass(frozen=True, kw_only=True)
class MixtureFile(_TypedPart):
    """The learned mixture and what it rests on."""

    cost: dict[str, float]
    """`training_flops`, `wall_seconds` and `tokens` of the search."""
    versions: dict[str, str]
    """Versions of the packages that the search ran with."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration."""

    @property
    def weights(self) -> dict[str, float]:
        """The learned weights by source name."""
        return {source.name: source.weight for source in self.sources}

    def write(self, path: str | Path) -> None:
        """Writes JSON, atomically; floats read back bit for bit. `ValueError` for NaN or Inf."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n")


def rows_and_answers(source: SourceWeight) -> tuple[int, int]:
    """Rows with an answer, and their answer tokens, of an answer-only source."""
    assert source.rows is not None
    assert source.answer_tokens is not None
    return source.rows, source.answer_tokens


def read_mixture(path: str | Path) -> MixtureFile:
    """Reads `mixture.json`, or the one in a run folder.

    Raises `DataError` for a file that is missing or not JSON, of another format or version, that
    lacks a key or has one too many, or whose weights are not shares that sum to 1.
    """
    path = Path(path)
    if path.is_dir():
        path = RunFolder(path).mixture
    values = _load(path)
    if values.get("format") != FORMAT:
        raise DataError(
            f"{path}: format is {values.get('format')!r}, expected {FORMAT!r}; "
            "give the mixture.json of a run folder"
        )
    if values.get("version") != VERSION:
        raise DataError(
            f"{path}: version is {values.get('version')!r}, this program reads {VERSION}; "
            "use the release that wrote the file"
        )
    mixture = _build(values, path)
    _check(mixture, path)
    return mixture


def _load(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise DataError(
            f"{path}: holds {constant}, which JSON and mixtures do not know; "
            "take the file that the run wrote"
        )

    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the mixture: {error.strerror}; "
            "give a mixture.json or a run folder that holds one"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}; write it again from the run") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _build(values: dict[str, Any], path: Path) -> MixtureFile:
    fields = {f.name for f in dataclasses.fields(MixtureFile)}
    typed_fields = {f.name for f in dataclasses.fields(_TypedPart)}
    mappings = fields - typed_fields
    missing = sorted(fields - values.keys() - {"seeds"})
    if missing:
        raise DataError(
            f"{path}: {', '.join(missing)} missing; the file is not whole or was edited: "
            "take the one that the run wrote"
        )
    for name in sorted(mappings):
        if not isinstance(values[name], dict):
            raise DataError(f"{path}: {name}: expected an object, found {values[name]!r}")
    try:
        typed = strict_yaml.from_dict(
            _TypedPart, {name: value for name, value in values.items() if name not in mappings}
        )
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None
    return MixtureFile(
        **{name: getattr(typed, name) for name in typed_fields},
        **{name: values[name] for name in mappings},
    )


def _check(mixture: MixtureFile, path: Path) -> None:
    if mixture.unit not in (UNIT, ANSWER_UNIT):
        raise DataError(
            f"{path}: unit is {mixture.unit!r}, this program reads {UNIT!r} and {ANSWER_UNIT!r}; "
            "weights of another unit mean something else, so convert them first"
        )
    for where, names in (
        ("sources", [s.name for s in mixture.sources]),
        ("targets", [t.name for t in mixture.targets]),
    ):
        if not names:
            raise DataError(f"{path}: {where} is empty; a run has at least one")
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(
                f"{path}: {where}: {twice} occur more than once; names are unique; "
                "take the file that the run wrote"
            )
    for source in mixture.sources:
        if mixture.unit == ANSWER_UNIT and not (source.rows and source.answer_tokens):
            raise DataError(
                f"{path}: source {source.name}: rows is {source.rows}, answer_tokens is "
                f"{source.answer_tokens}, but the unit is {ANSWER_UNIT!r}; take the file that the "
                "run wrote"
            )
        if source.tokens < 1:
            raise DataError(
                f"{path}: source {source.name}: tokens is {source.tokens}, expected 1 or more; "
                "take the file that the run wrote"
            )
    shares = {
        f"{key} of sources": {source.name: getattr(source, key) for source in mixture.sources}
        for key in ("initial_weight", "final_weight", "weight")
    }
    shares["weight of targets"] = {target.name: target.weight for target in mixture.targets}
    for what, weights in shares.items():
        negative = {name: weight for name, weight in weights.items() if weight < 0}
        total = math.fsum(weights.values())
        if negative or abs(total - 1) > SUM_TOLERANCE:
            found = f"negative for {negative}" if negative else f"summing to {total!r}"
            raise DataError(
                f"{path}: {what}: found {found}; expected shares of 0 or more that sum to 1; "
                "take the file that the run wrote"
            )

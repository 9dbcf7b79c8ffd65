"""`mixture.json`: the learned mixture as a file, complete enough to be used without the run.

What follows from other keys (`epochs`, `row_weight`, `answer_tokens`, `unit`) is there for readers
of the file; `read_mixture` works it out again. Version 1 had no `shards`, no `loss_tokens` and no
sizes of targets but their tokens; it is read, too.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.config import strict_yaml
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.result.learned_group import LearnedGroup
from megatron_fastmix.result.learned_mixture import LearnedMixture, LearnedSource, TargetResult
from megatron_fastmix.result.mixture_keys import (
    ANSWER_UNIT,
    FORMAT,
    LOSS_UNIT,
    SAME,
    UNIT,
    UNITS,
    VERSION,
    Keys,
    SourceKeys,
    TargetKeys,
    values_of,
)
from megatron_fastmix.result.sizes import Shard, Size, total_size
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.text_files import read_json_object

FIX = "give the mixture.json that a run wrote, or its folder"
READABLE = (1, VERSION)
"""Versions of the file that this program reads."""
SUM_TOLERANCE = 1e-9
COMPACT_ABOVE = 256
"""Sources beyond which an entry of a list is one line."""


def write_mixture(path: str | Path, mixture: LearnedMixture) -> None:
    """Writes JSON, atomically; floats read back bit for bit. `ValueError` for NaN or Inf."""
    values = values_of(mixture)
    if len(mixture.sources) > COMPACT_ABOVE:
        text = _lines(values)
    else:
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def _lines(values: dict[str, Any], indent: str = "") -> str:
    """The same JSON with a line for each entry of a list and each value: half as large, and a
    source can be found by its line."""
    parts = []
    for key, value in values.items():
        if isinstance(value, dict):
            text = _lines(value, f"{indent}  ")
        elif isinstance(value, list | tuple) and value:
            entries = ",\n".join(f"{indent}    {_compact(entry)}" for entry in value)
            text = f"[\n{entries}\n{indent}  ]"
        else:
            text = _compact(value)
        parts.append(f"{indent}  {json.dumps(key, ensure_ascii=False)}: {text}")
    return "{\n" + ",\n".join(parts) + f"\n{indent}}}" if parts else "{}"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def read_mixture(path: str | Path) -> LearnedMixture:
    """Reads `mixture.json`, or the one in a run folder.

    Raises `DataError` for a file that is missing or not JSON, of another format or version, that
    lacks a key or has one too many, whose weights are not shares that sum to 1, or whose sizes
    cannot be.
    """
    path = Path(path)
    if path.is_dir():
        path = RunFolder(path).mixture
    values = read_json_object(path, "the mixture", fix=FIX)
    if values.get("format") != FORMAT:
        raise DataError(
            f"{path}: format is {values.get('format')!r}, expected {FORMAT!r}; "
            "give the mixture.json of a run folder"
        )
    if values.get("version") not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise DataError(
            f"{path}: version is {values.get('version')!r}, this program reads {readable}; "
            "use the release that wrote the file"
        )
    keys = _check_types(values, path)
    _check_unit_and_names(keys, path)
    mixture = LearnedMixture(
        sources=tuple(_source(source, keys, path) for source in keys.sources),
        groups=_groups(keys, path),
        targets=tuple(_target(target, keys, path) for target in keys.targets),
        **{key: getattr(keys, key) for key in SAME},
    )
    _check_sums(mixture, path)
    return mixture


def _check_types(values: dict[str, Any], path: Path) -> Keys:
    needed = [f.name for f in dataclasses.fields(Keys) if f.default is dataclasses.MISSING]
    missing = sorted(key for key in needed if key not in values)
    if missing:
        raise DataError(
            f"{path}: {', '.join(missing)} missing; the file is not whole or was edited: "
            "take the one that the run wrote"
        )
    try:
        keys: Keys = strict_yaml.from_dict(Keys, values)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None
    for section in ("tokenizer", "data"):
        found = keys.config.get(section, {})
        if not isinstance(found, dict):
            raise _impossible(path, f"config.{section}", repr(found), "an object")
    return keys


def _check_unit_and_names(keys: Keys, path: Path) -> None:
    if keys.unit not in UNITS:
        raise DataError(
            f"{path}: unit is {keys.unit!r}, this program reads {', '.join(map(repr, UNITS))}; "
            "weights of another unit mean something else, so convert them first"
        )
    for key, least in (("seq_length", 1), ("token_budget", 1), ("steps", 0)):
        if getattr(keys, key) < least:
            raise _impossible(path, key, getattr(keys, key), f"{least} or more")
    for where, names in (
        ("sources", [s.name for s in keys.sources]),
        ("targets", [t.name for t in keys.targets]),
    ):
        if not names:
            raise DataError(f"{path}: {where} is empty; a run has at least one")
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(
                f"{path}: {where}: {twice} occur more than once; names are unique; "
                "take the file that the run wrote"
            )


def _groups(keys: Keys, path: Path) -> tuple[LearnedGroup, ...]:
    names = [source.name for source in keys.sources]
    held = [name for group in keys.groups for name in group.sources]
    if keys.groups and sorted(held) != sorted(names):
        raise _impossible(path, "groups: sources", held, "every source once")
    kept = {field.name for field in dataclasses.fields(LearnedGroup)}
    return tuple(
        LearnedGroup(**{key: value for key, value in vars(group).items() if key in kept})
        for group in keys.groups
    )


def _source(source: SourceKeys, keys: Keys, path: Path) -> LearnedSource:
    shards = source.shards
    if keys.version == 1:
        shards = (_only_shard(source, keys, path),)
    where = f"source {source.name}"
    if not shards:
        raise _impossible(path, f"{where}: shards", "none", "one or more")
    for shard in shards:
        _check_size(shard, path, f"{where}: {shard.path}")
    learned = LearnedSource(
        name=source.name,
        shards=shards,
        documents=source.documents,
        initial_weight=source.initial_weight,
        final_weight=source.final_weight,
        weight=source.weight,
        weight_std=source.weight_std,
        logit=source.logit,
        advantage=source.advantage,
        advantage_standard_error=source.advantage_standard_error,
    )
    if not 0 <= learned.weight_std <= 1:
        raise _impossible(path, f"{where}: weight_std", learned.weight_std, "0 to 1")
    size = learned.size
    if keys.unit != LOSS_UNIT and size.answer_only != (keys.unit == ANSWER_UNIT):
        raise _impossible(
            path, f"{where}: loss_tokens", f"{size.loss_tokens} of {size.tokens}", repr(keys.unit)
        )
    if keys.version > 1:
        for key in ("tokens", "loss_tokens", "rows"):
            found, total = getattr(source, key), getattr(size, key)
            if found != total:
                raise _impossible(path, f"{where}: {key}", found, f"{total}, as its shards have")
    return learned


def _only_shard(source: SourceKeys, keys: Keys, path: Path) -> Shard:
    """That of a source of version 1."""
    if keys.unit == UNIT:
        return Shard(
            path=source.path,
            tokens=source.tokens,
            loss_tokens=source.tokens,
            rows=source.documents,
        )
    if not (source.rows and source.answer_tokens):
        raise DataError(
            f"{path}: source {source.name}: rows is {source.rows}, answer_tokens is "
            f"{source.answer_tokens}, but the unit is {ANSWER_UNIT!r}; take the file that the "
            "run wrote"
        )
    return Shard(
        path=source.path,
        tokens=source.tokens,
        loss_tokens=source.answer_tokens,
        rows=source.rows,
    )


def _target(target: TargetKeys, keys: Keys, path: Path) -> TargetResult:
    size = None
    if target.loss_tokens is not None and target.rows is not None:
        size = Size(tokens=target.tokens, loss_tokens=target.loss_tokens, rows=target.rows)
        _check_size(size, path, f"target {target.name}")
    elif keys.version > 1 and (target.loss_tokens, target.rows) != (None, None):
        raise _impossible(path, f"target {target.name}: rows", target.rows, "loss_tokens and rows")
    where = f"target {target.name}"
    for shard in target.shards:
        _check_size(shard, path, f"{where}: {shard.path}")
    if target.shards and total_size(target.shards) != size:
        found = total_size(target.shards)
        raise _impossible(path, f"{where}: size of its shards", found, f"{size}")
    return TargetResult(
        name=target.name,
        path=target.path,
        tokens=target.tokens,
        size=size,
        shards=target.shards,
        weight=target.weight,
        initial_loss=target.initial_loss,
        final_loss=target.final_loss,
    )


def _check_size(size: Size, path: Path, where: str) -> None:
    for key, value, least, most in (
        ("tokens", size.tokens, 1, math.inf),
        ("loss_tokens", size.loss_tokens, 1, size.tokens),
        ("rows", size.rows, int(size.answer_only), math.inf),
    ):
        if not least <= value <= most:
            limit = f" and at most {most} tokens" if most < math.inf else ""
            raise _impossible(path, f"{where}: {key}", value, f"{least} or more{limit}")


def _check_sums(mixture: LearnedMixture, path: Path) -> None:
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


def _impossible(path: Path, what: str, found: object, expected: str) -> DataError:
    return DataError(
        f"{path}: {what} is {found}, expected {expected}; take the file that the run wrote"
    )

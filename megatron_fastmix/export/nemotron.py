"""NVIDIA Nemotron's `DataBlend`, written and read.

Source: `nemotron/data_prep/blend.py` and the recipes' `data_blend_raw*.json`: `datasets`, or lists
by split (`train`, `valid`, `test`), of `name`, `path`, `weight` (of any sum, 1 where it is missing)
and, for datasets of a hub, `subset` and `split`. Several entries may share a path, names are
unique. Keys that begin with an underscore are comments.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.blend import Blend, BlendEntry


@dataclass(frozen=True, kw_only=True)
class DataBlendEntry:
    """One dataset of a `DataBlend`."""

    name: str
    path: str
    """A folder, file or address such as `hf://owner/name`; seldom a prefix of .bin and .idx."""
    share: float
    """Share of its split, summing to 1."""
    subset: str | None


def source_of(entry: str, sources: Collection[str]) -> str:
    """The source that an entry is of: `data_blend` numbers the datasets of one that has several,
    behind as many slashes as make a name of its own."""
    source, _, number = entry.rpartition("/")
    source = source.rstrip("/")
    return source if entry not in sources and source in sources and number.isdecimal() else entry


def data_blend(blend: Blend) -> str:
    """A `DataBlend` by split: train from the sources, valid from the targets where there are any;
    `datasets` alone where there is no target."""
    if not blend.targets:
        values = {"datasets": entries(blend.sources)}
    else:
        values = {"train": entries(blend.sources), "valid": entries(blend.targets)}
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def entries(chosen: Sequence[BlendEntry]) -> list[dict[str, Any]]:
    """Name, path and weight of each."""
    return [{"name": e.name, "path": e.path, "weight": float(e.weight)} for e in chosen]


def is_data_blend(value: Any) -> bool:
    """Whether parsed JSON is a `DataBlend` and not Megatron's blend by split."""
    if not isinstance(value, dict):
        return False
    lists = [value.get(key) for key in ("datasets", "train")]
    return any(isinstance(found, list) and found and isinstance(found[0], dict) for found in lists)


def read_data_blend(value: dict[str, Any], where: str) -> list[DataBlendEntry]:
    """The training datasets of a `DataBlend`, those of weight 0 left out.

    Raises `DataError`, which begins with `where`, for entries without a name or path, names that
    recur, and weights that are no numbers of 0 or more or all 0.
    """
    key = "datasets" if value.get("datasets") is not None else "train"
    found = value[key]
    weights: dict[str, float] = {}
    for number, entry in enumerate(found):
        at = f"{where}: {key}[{number}]"
        if not isinstance(entry, dict):
            raise DataError(f"{at}: found {entry!r}; expected an object with name, path and weight")
        for field in ("name", "path"):
            if not isinstance(entry.get(field), str) or not entry[field].strip():
                raise DataError(f"{at}.{field}: found {entry.get(field)!r}; expected text")
        name, weight = entry["name"], entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise DataError(f"{at}.weight: found {weight!r}; expected a number")
        if not 0 <= weight < math.inf:
            raise DataError(f"{at}.weight: found {weight!r}; expected 0 or more")
        if name in weights:
            raise DataError(f"{at}.name: {name} occurs twice; names are unique")
        weights[name] = float(weight)
    total = math.fsum(weights.values())
    if not total:
        raise DataError(f"{where}: {key} has no weight above 0; expected name, path and weight")
    return [
        DataBlendEntry(
            name=entry["name"],
            path=entry["path"].strip(),
            share=weights[entry["name"]] / total,
            subset=entry.get("subset"),
        )
        for entry in found
        if weights[entry["name"]] > 0
    ]

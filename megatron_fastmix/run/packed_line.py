"""Lines of `metrics.jsonl` of a search of very many sources, without their names.

Beyond `PACKED_ABOVE` sources a line names none of them, and `packed` lists the keys that are by
source, in the order of the `run` line's `sources`. What has a value for each is one text: `f8:` or
`f4:` and the base64 of little-endian floats, NaN where there is none. What has one for few (the
losses of the sources that were drawn) is a pair of arrays, places and values. Weights are float64,
bit for bit, the rest float32. The logits, which follow from the weights, are left out.
`read_metrics` gives the mappings back, so that nothing else knows; it also reads what earlier
releases wrote, arrays of numbers.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_fastmix.errors import ConfigError

PACKED_ABOVE = 256
EXACT = ("weights", "initial_weights")
_FOLLOWS = ("logits",)
_TYPES = {"f8": "<f8", "f4": "<f4"}


def pack(line: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The line as it is written; `names` are all sources."""
    if len(names) <= PACKED_ABOVE or line["kind"] == "run":
        return line
    keys = [key for key, value in line.items() if _is_of_all(value, names)]
    kept = [key for key in keys if key not in _FOLLOWS]
    packed = {key: _packed(line[key], exact=key in EXACT) for key in kept}
    rest = {key: value for key, value in line.items() if key not in keys or key in kept}
    return rest | packed | ({"packed": kept} if kept else {})


def number_keys(line: dict[str, Any]) -> set[str]:
    """Keys of a line as it is read that `unpack` makes mappings to numbers of, or refuses."""
    keys = line.get("packed")
    known = keys if isinstance(keys, list) else []
    return {key for key in known if isinstance(key, str) and _holds_numbers(line.get(key))}


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], list):
        value = value[1]
    return isinstance(value, str) or (
        isinstance(value, list) and set(map(type, value)) <= {int, float, type(None)}
    )


def unpack(line: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What was packed. Raises `ConfigError` for arrays that are not of these sources."""
    keys = line.pop("packed", None)
    if keys is None:
        return line
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ConfigError(f"packed: expected a list of keys, found {keys!r}")
    for key in keys:
        line[key] = _unpacked(line.get(key), names, key)
    return line


def _is_of_all(value: Any, names: Sequence[str]) -> bool:
    return isinstance(value, dict) and len(value) == len(names) and list(value) == list(names)


def _packed(values: dict[str, float | None], *, exact: bool) -> str | list[Any]:
    numbers = np.array([math.nan if v is None else v for v in values.values()], dtype="<f8")
    known = np.flatnonzero(np.isfinite(numbers))
    if len(known) <= len(numbers) // 2 and not exact:
        return [known.tolist(), [float(f"{v:.6g}") for v in numbers[known].tolist()]]
    kind = "f8" if exact else "f4"
    return f"{kind}:{base64.b64encode(numbers.astype(_TYPES[kind]).tobytes()).decode()}"


def _unpacked(value: Any, names: Sequence[str], key: str) -> dict[str, Any]:
    wrong = ConfigError(f"{key}: found no array of the {len(names)} sources")
    if isinstance(value, str):
        kind, _, text = value.partition(":")
        try:
            numbers = np.frombuffer(base64.b64decode(text, validate=True), _TYPES[kind])
        except (KeyError, ValueError, binascii.Error):
            raise wrong from None
        if len(numbers) != len(names):
            raise wrong
        each: list[Any] = numbers.tolist()
        for place in np.flatnonzero(~np.isfinite(numbers)).tolist():
            each[place] = None
        return dict(zip(names, each, strict=True))
    if isinstance(value, list) and len(value) == len(names):
        return dict(zip(names, value, strict=True))
    found: dict[str, Any] = dict.fromkeys(names)
    try:
        places, values = value
        for place, one in zip(places, values, strict=True):
            found[names[range(len(names))[place]]] = one
    except (TypeError, ValueError, IndexError):
        raise wrong from None
    return found

"""Lines of `metrics.jsonl` of a search of very many sources, without their names.

Beyond `PACKED_ABOVE` sources a line names none of them: what has a value for each is an array in
the order of the `run` line's `sources`, what has one for few (the losses of the sources that were
drawn) a pair of arrays, places and values. `packed` lists the keys. Weights keep all digits, the
other numbers six. `read_metrics` gives the mappings back, so that nothing else knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_fastmix.errors import ConfigError

PACKED_ABOVE = 256
EXACT = ("weights", "initial_weights")
DIGITS = 6


def pack(line: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The line as it is written; `names` are all sources."""
    if len(names) <= PACKED_ABOVE or line["kind"] == "run":
        return line
    keys = [key for key, value in line.items() if _is_of_all(value, names)]
    packed = {key: _packed(line[key], exact=key in EXACT) for key in keys}
    return line | packed | ({"packed": keys} if keys else {})


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


def _packed(values: dict[str, float | None], *, exact: bool) -> list[Any]:
    short = [v if exact or v is None else float(f"{v:.{DIGITS}g}") for v in values.values()]
    known = [place for place, value in enumerate(short) if value is not None]
    if len(known) > len(short) // 2:
        return short
    return [known, [short[place] for place in known]]


def _unpacked(value: Any, names: Sequence[str], key: str) -> dict[str, Any]:
    if isinstance(value, list) and len(value) == len(names):
        return dict(zip(names, value, strict=True))
    found: dict[str, Any] = dict.fromkeys(names)
    try:
        places, values = value
        for place, each in zip(places, values, strict=True):
            found[names[range(len(names))[place]]] = each
    except (TypeError, ValueError, IndexError):
        raise ConfigError(f"{key}: found no array of the {len(names)} sources") from None
    return found

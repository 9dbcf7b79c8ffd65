"""What several runs have different in their configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_fastmix.report.run_record import RunRecord


def differences(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Values by dotted key, one for each run, of the keys that are not the same in all."""
    flat = [_flat(run.config) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    found = {key: [values.get(key, "–") for values in flat] for key in keys}
    return {key: values for key, values in found.items() if any(v != values[0] for v in values)}


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        items = list(values.items())
    elif isinstance(values, list) and any(isinstance(item, dict) for item in values):
        items = [
            (item.get("name", i) if isinstance(item, dict) else i, item)
            for i, item in enumerate(values)
        ]
    else:
        return {prefix.rstrip("."): values}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}{key}.")
    return flat

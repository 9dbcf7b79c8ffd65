"""GPT-NeoX. Source: `NeoXArgs.validate_values` in `megatron/neox_arguments/arguments.py`."""

from __future__ import annotations

import json
from typing import Any

from megatron_fastmix.export.blend import Blend


def data_paths(blend: Blend) -> str:
    """A configuration file of paths and weights, to be given beside the others.

    GPT-NeoX demands all three splits or none, so the targets serve for validation and for test.
    """
    values: dict[str, Any] = {}
    for split, entries in (
        ("train", blend.sources),
        ("valid", blend.targets),
        ("test", blend.targets),
    ):
        values[f"{split}-data-paths"] = [entry.path for entry in entries]
        values[f"{split}-data-weights"] = [float(entry.weight) for entry in entries]
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

"""nanotron. Source: `NanosetDatasetsArgs` in `nanotron/config/config.py`."""

from __future__ import annotations

import yaml

from megatron_fastmix.export.blend import Blend


def nanoset(blend: Blend) -> str:
    """The `dataset` of a data stage: folders and as many weights."""
    dataset = {
        "dataset_folder": [entry.path for entry in blend.sources],
        "dataset_weights": [float(entry.weight) for entry in blend.sources],
    }
    return yaml.safe_dump({"dataset": dataset}, sort_keys=False, allow_unicode=True)

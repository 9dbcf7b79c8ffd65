"""Megatron-Energon's metadataset, version 2. Source: its `docs/source/basic/metadataset.md`."""

from __future__ import annotations

import yaml

from megatron_fastmix.export.blend import Blend


def metadataset(blend: Blend) -> str:
    """The YAML of a metadataset that blends the sources for training."""
    entries = [{"weight": float(entry.weight), "path": entry.path} for entry in blend.sources]
    values = {
        "__module__": "megatron.energon",
        "__class__": "MetadatasetV2",
        "splits": {"train": {"blend": entries}},
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

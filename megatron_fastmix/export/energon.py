"""Megatron-Energon's metadataset, version 2. Source: its `docs/source/basic/metadataset.md`."""

from __future__ import annotations

from typing import Any

import yaml

from megatron_fastmix.export.blend import Blend


def metadataset(blend: Blend) -> str:
    """The YAML of a metadataset that blends the sources for training."""
    return _file(
        "blend", [{"weight": float(entry.weight), "path": entry.path} for entry in blend.sources]
    )


def epochized_metadataset(blend: Blend) -> str:
    """The same by repetitions: one pass over the metadataset is the token budget."""
    entries = [
        {"repetitions": blend.repetitions(entry), "path": entry.path} for entry in blend.sources
    ]
    return _file("blend_epochized", entries)


def _file(kind: str, entries: list[dict[str, Any]]) -> str:
    values = {
        "__module__": "megatron.energon",
        "__class__": "MetadatasetV2",
        "splits": {"train": {kind: entries}},
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

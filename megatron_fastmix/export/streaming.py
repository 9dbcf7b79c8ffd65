"""MosaicML streaming, as LLM Foundry configures it. Source: `streaming.Stream`."""

from __future__ import annotations

import yaml

from megatron_fastmix.export.blend import Blend


def streams(blend: Blend) -> str:
    """The YAML `streams` of a dataset; each has a proportion, as either all or none must."""
    values = {
        entry.name: {"local": entry.path, "proportion": float(entry.weight)}
        for entry in blend.sources
    }
    return yaml.safe_dump({"streams": values}, sort_keys=False, allow_unicode=True)

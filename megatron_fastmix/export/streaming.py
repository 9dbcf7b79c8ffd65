"""MosaicML streaming, as LLM Foundry configures it. Source: `streaming.Stream`."""

from __future__ import annotations

from typing import Any

import yaml

from megatron_fastmix.export.blend import Blend


def streams(blend: Blend) -> str:
    """The YAML `streams` of a dataset; each has a proportion, as either all or none must."""
    return _file({e.name: {"local": e.path, "proportion": float(e.weight)} for e in blend.sources})


def repeated_streams(blend: Blend) -> str:
    """The same by `repeat`: one epoch of the dataset is the token budget."""
    return _file({e.name: {"local": e.path, "repeat": blend.repetitions(e)} for e in blend.sources})


def _file(values: dict[str, Any]) -> str:
    return yaml.safe_dump({"streams": values}, sort_keys=False, allow_unicode=True)

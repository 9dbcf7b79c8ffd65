"""Reading a search's configuration, with overrides, and writing it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_fastmix.config import strict_yaml
from megatron_fastmix.config.search import OWN_SECTIONS, SearchConfig


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Reads `path` and applies `--key=value` overrides. Raises `ConfigError`."""
    return _from_values(strict_yaml.load_yaml(path), overrides)


def override_config(config: SearchConfig, overrides: Sequence[str]) -> SearchConfig:
    """`config` with `--key=value` overrides. Raises `ConfigError`."""
    return _from_values(strict_yaml.to_dict(config), overrides)


def _from_values(values: dict[str, Any], overrides: Sequence[str]) -> SearchConfig:
    values = strict_yaml.apply_overrides(SearchConfig, values, overrides, OWN_SECTIONS)
    return strict_yaml.from_dict(SearchConfig, values)


def dump_config(config: SearchConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(strict_yaml.to_dict(config), sort_keys=False, allow_unicode=True)

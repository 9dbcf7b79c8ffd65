"""The run folder: one search, its configuration, and who may write to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_fastmix import strict_yaml
from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.config import SearchConfig, dump_config, load_config
from megatron_fastmix.errors import ConfigError

CONFIG_FILE = "config.yaml"
STOP_FILE = "stop"

_MAY_DIFFER = ("run_dir", "output.", "engine.distributed_timeout_minutes", "data.data_cache_path")
"""Keys that may change between the parts of one search: they move no result."""


def claim(config: SearchConfig) -> Path:
    """Makes the run folder, or checks that the one there is of this very search.

    Raises `ConfigError` that names every key that differs.
    """
    folder = Path(config.run_dir)
    kept = folder / CONFIG_FILE
    if kept.exists():
        before = _flat(strict_yaml.to_dict(load_config(kept)))
        now = _flat(strict_yaml.to_dict(config))
        differing = [
            f"{key}: was {before.get(key)!r}, now {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(_MAY_DIFFER)
        ]
        if differing:
            raise ConfigError(
                f"{folder}: holds a search with another configuration ({'; '.join(differing)}); "
                "set these back to resume it, or choose another run_dir"
            )
    try:
        write_atomically(kept, dump_config(config))
        (folder / STOP_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir: cannot write to {folder}: {error.strerror}") from None
    return folder


def request_stop(folder: Path) -> None:
    """Asks the ranks of a running search, on whichever host, to write a checkpoint and end."""
    (folder / STOP_FILE).touch()


def stop_requested(folder: Path) -> bool:
    return (folder / STOP_FILE).exists()


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to plain values."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    flat: dict[str, Any] = {}
    for key, value in items:
        if isinstance(value, dict | list):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

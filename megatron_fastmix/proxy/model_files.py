"""Whether the files of a Hugging Face model are whole and transformers understands them.

Imports neither torch nor Megatron, and transformers alone for its configurations.
"""

from __future__ import annotations

import importlib
import struct
from pathlib import Path
from typing import Any

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.extras import needs_package
from megatron_fastmix.text_files import parse_json, read_json_object

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_FIX = "copy the model again"


def check_model_files(folder: Path) -> None:
    """Raises `ConfigError` that names the file for a model without weights, with a part of them
    missing or cut, or with a configuration that transformers cannot read."""
    load_model_config(str(folder))
    for file in _weight_files(folder):
        if not file.is_file():
            raise ConfigError(f"proxy.path: {file} is missing; {_FIX}")
        if file.suffix == ".safetensors":
            _check_safetensors(file)


def load_model_config(path: str) -> Any:
    """The model's configuration as transformers reads it. Raises `ConfigError`."""
    transformers = import_extra("transformers")
    try:
        return transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # each configuration class checks in a way of its own
        raise not_loadable(path, error) from None


def import_extra(name: str) -> Any:
    """Imports a package of the extra `huggingface`. Raises `ConfigError` without it."""
    with needs_package(name, "proxy.kind huggingface", "huggingface"):
        return importlib.import_module(name)


def not_loadable(path: str | None, error: BaseException) -> ConfigError:
    """What to raise where transformers fails on the model at `path`."""
    if "trust_remote_code" in str(error):
        return ConfigError(
            f"proxy.path: {path} needs code that comes with it (auto_map in its config.json), and "
            "code of a download is never run here; use a version of transformers that has this "
            "architecture of its own, or a model of one, or build it yourself with proxy.kind "
            "provider"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {' '.join(lines)[:300]}"
    return ConfigError(
        f"proxy.path: transformers cannot load {path}: {reason}; {_FIX}, or use a version of "
        "transformers that knows it"
    )


def _weight_files(folder: Path) -> list[Path]:
    for name in _WHOLE:
        if (folder / name).exists():
            return [folder / name]
    for name in _INDICES:
        if (folder / name).exists():
            where = read_json_object(folder / name, "the index", fix=_FIX, error=ConfigError)
            parts = where.get("weight_map")
            if not isinstance(parts, dict) or not all(
                isinstance(part, str) and Path(part).name == part for part in parts.values()
            ):
                raise ConfigError(f"proxy.path: {folder / name} names no files; {_FIX}")
            return [folder / part for part in sorted(set(parts.values()))]
    raise ConfigError(
        f"proxy.path: {folder} has no weights: no {', '.join((*_WHOLE, *_INDICES))}; {_FIX}"
    )


def _check_safetensors(file: Path) -> None:
    """The head of a .safetensors file says where each tensor ends, and so how long the file is."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            head = content.read(min(length, size))
        tensors: Any = parse_json(head.decode("utf-8"))
        ends = [
            int(tensor["data_offsets"][1])
            for name, tensor in tensors.items()
            if name != "__metadata__"
        ]
        expected = 8 + length + max(ends, default=0)
    except OSError as error:
        raise ConfigError(f"proxy.path: cannot read {file}: {error.strerror}; {_FIX}") from None
    except (ValueError, struct.error, LookupError, TypeError, AttributeError):
        raise ConfigError(f"proxy.path: {file} is no safetensors file; {_FIX}") from None
    if size != expected:
        relation = "truncated" if size < expected else "too long"
        raise ConfigError(
            f"proxy.path: {file} is {relation}: {size:,} bytes found, {expected:,} expected; {_FIX}"
        )

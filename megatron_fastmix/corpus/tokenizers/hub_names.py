"""Names of models on the Hugging Face Hub in the place of a path. Nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from megatron_fastmix.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def local_file(path: str | Path, names: Sequence[str], where: str) -> Path:
    """`path`, or where nothing stands there the first of the files `names` that the hub's cache of
    this host has of the model of that name.

    `where` is the key that `path` is from. Raises `ConfigError` for what is neither a file or
    folder nor in the cache, but looks like a model's name.
    """
    path = Path(path)
    name = str(path)
    if path.exists() or not _NAME.fullmatch(name) or path.suffix in {".json", ".model", ".jinja"}:
        return path
    if path.parent.is_dir() and str(path.parent) != ".":
        return path  # a file that is missing in a folder that is here
    for each in names:
        found = _cached(name, each)
        if found is not None:
            return found
    raise ConfigError(
        f"{where}: {name} is no file or folder here, and this host's cache of the Hugging Face Hub "
        "has no tokenizer of that name; nothing is downloaded: where there is a network, run "
        f"`hf download {name} --local-dir {path.name} --exclude '*.safetensors' '*.bin'`, and give "
        f"the folder {path.name} in its place"
    )


def is_cached(name: str) -> bool:
    """Whether `name` is that of a model whose tokenizer the hub's cache of this host has."""
    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    return _NAME.fullmatch(name) is not None and any(_cached(name, file) for file in files)


def _cached(name: str, file: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None

"""What one host says of itself before a run: packages, configuration, data, and the run folder.

Imports neither torch nor Megatron.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatron_fastmix.checkpoint.identity import fingerprint_of, sample_bytes_for
from megatron_fastmix.config import SearchConfig, dump_config, load_config
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import FastMixError
from megatron_fastmix.start.limits import check_limits
from megatron_fastmix.storage import reason_of

PACKAGES = ("megatron-fastmix", "megatron-core", "deepspeed", "torch", "numpy", "sentencepiece")
_OF_KIND = {"huggingface": ("transformers", "peft")}
"""Packages besides, by proxy.kind."""
PROBE_FOLDER = ".hosts"
"""Folder in the run folder where hosts show each other that they share it."""

_SAMPLE_BYTES = 4 << 30
"""Of all datasets together, where a start reads less."""
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

Report = dict[str, Any]
"""JSON: `host`, `facts` (what must be equal everywhere) and `problems` (this host's own)."""


def report(config: SearchConfig, token: str, *, compared: bool = True) -> Report:
    """This host's part. `token` names the file that the starting host left in the run folder.
    Unless it is `compared`, no more is read of each dataset than shows that it is there."""
    packages = (*PACKAGES, *_OF_KIND.get(config.proxy.kind, ()))
    facts = {
        "Python": platform.python_version(),
        **{f"package {name}": _version(name) for name in packages},
        "configuration": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        **{key: _content(path) for key, path in _paths(config).items()},
    }
    problems = []
    sample = _sample_bytes(config) if compared else 0
    for kind, datasets in (("source", config.sources), ("target", config.targets)):
        for dataset in datasets:
            try:
                prefixes = dataset.prefixes()
                facts[f"{kind} {dataset.name}"] = fingerprint_of(prefixes, sample)
            except OSError as error:
                problems.append(f"{kind} {dataset.name}: {error.filename}: {error.strerror}")
            except FastMixError as error:
                problems.append(str(error))
    try:
        facts["tokenizer"] = load_tokenizer(**vars(config.tokenizer)).sha256
    except FastMixError as error:
        problems.append(f"tokenizer: {error}")
    try:
        check_limits(config)
    except FastMixError as error:
        problems += [] if str(error) in problems else [str(error)]
    problems += _check_folder(config, token) + _check_interfaces()
    return {"host": socket.gethostname(), "facts": facts, "problems": problems}


def print_report(config_path: str, token: str) -> None:
    """Prints this host's report as one line of JSON; `config_path` is in the run folder."""
    if Path(config_path).exists():
        answer = report(load_config(config_path), token)
    else:
        problem = _not_shared(Path(config_path).parent)
        answer = {"host": socket.gethostname(), "facts": {}, "problems": [problem]}
    print(json.dumps(answer | {"wrote": _wrote(token)}), flush=True)


def _wrote(token: str) -> str:
    """Name of the file that this host leaves as its answer."""
    return f"{token}.{socket.gethostname()}.{os.getpid()}"


def _check_folder(config: SearchConfig, token: str) -> list[str]:
    probes = Path(config.run_dir) / PROBE_FOLDER
    if not (probes / token).exists():
        return [_not_shared(config.run_dir)]
    try:
        (probes / _wrote(token)).touch()
    except OSError as error:
        return [f"cannot write to {config.run_dir}: {reason_of(error)}"]
    return []


def _not_shared(folder: str | Path) -> str:
    return (
        f"{folder} here is not that of the starting host; put run_dir on a file system that all "
        "hosts share"
    )


def _check_interfaces() -> list[str]:
    present = [name for _, name in socket.if_nameindex()]
    problems = []
    for variable in _INTERFACE_VARIABLES:
        wanted = os.environ.get(variable, "")
        if wanted.startswith("^"):  # of NCCL: all but those of the list
            continue
        # NCCL takes prefixes, or after = names.
        named = [name for name in wanted.removeprefix("=").split(",") if name]
        if named and not any(have.startswith(name) for name in named for have in present):
            problems.append(f"{variable} is {wanted}; it has {', '.join(present)}")
    return problems


def _sample_bytes(config: SearchConfig) -> int:
    """More than a start reads, where that takes no longer: hosts are compared once."""
    try:
        count = len(config.prefixes())
    except FastMixError:
        count = 1  # the source is named below
    return max(_SAMPLE_BYTES // count, sample_bytes_for(count))


def _paths(config: SearchConfig) -> dict[str, Path]:
    """What the ranks of every host read besides the datasets, by key; a model's name on the hub is
    no path."""
    named = {
        "proxy.path": config.proxy.path,
        "proxy.checkpoint": config.proxy.checkpoint,
        "engine.deepspeed_config": config.engine.deepspeed_config,
    }
    return {key: Path(path) for key, path in named.items() if path is not None}


def _content(path: Path) -> str:
    """A digest of a file, or of a folder's names and sizes."""
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file():
                    digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        else:
            digest.update(path.read_bytes())
    except OSError as error:
        return error.strerror or "unreadable"
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"

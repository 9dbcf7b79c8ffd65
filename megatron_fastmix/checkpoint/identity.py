"""What a checkpoint rests on and does not hold, by content and not by path: datasets, the tokenizer
and the model under adapters."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.dataset_paths import loss_mask_prefix
from megatron_fastmix.errors import CheckpointError, ConfigError
from megatron_fastmix.file_memo import MEMO, State, state_of

if TYPE_CHECKING:  # importing torch takes seconds, and the command line has no need of it
    from megatron_fastmix.parallel.groups import DataParallelGroup

_BLOCK_BYTES = 1 << 20
_SMALL_BLOCK_BYTES = 1 << 16
"""Of samples below 16 blocks."""

Identity = dict[str, Any]
"""JSON: `tokenizer` (sha256), `sources` and `targets` (lists of [name, fingerprint]), and with LoRA
`base`, the fingerprint of the model's folder."""


def identity_of(config: SearchConfig, tokenizer_sha256: str) -> Identity:
    """What this search reads. Raises `DataError` for a file that cannot be read."""
    sources = [(source.name, source.prefixes()) for source in config.sources]
    targets = [(target.name, target.prefixes()) for target in config.targets]
    size = sample_bytes_for(sum(len(prefixes) for _, prefixes in (*sources, *targets)))
    proxy = config.proxy
    return {
        "tokenizer": tokenizer_sha256,
        "sources": [[name, fingerprint_of(prefixes, size)] for name, prefixes in sources],
        "targets": [[name, fingerprint_of(prefixes, size)] for name, prefixes in targets],
        # Without adapters all weights are in the checkpoint, and the folder's are not read again.
        **({"base": _model_fingerprint(Path(str(proxy.path)))} if proxy.lora_rank else {}),
    }


def sample_bytes_for(datasets: int) -> int:
    """What is read of each file, so that a start reads a few GiB however many datasets there are.

    In steps, since a fingerprint holds for one size of the sample: a dataset more is no change of
    the others.
    """
    if datasets <= 64:
        return 64 << 20
    return 1 << 20 if datasets <= 4096 else 128 << 10


def fingerprint_of(prefixes: Sequence[str], sample_bytes: int = 64 << 20) -> str:
    """`fingerprint` of a source's datasets together, in their order. Raises `OSError`."""
    each = [fingerprint(prefix, sample_bytes) for prefix in prefixes]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def fingerprint(prefix: str, sample_bytes: int = 64 << 20) -> str:
    """sha256 over the sizes of PREFIX.idx and PREFIX.bin and their content, and over those of the
    loss mask where there is one: whole up to `sample_bytes` a file, else evenly spaced blocks, the
    first and the last among them. Raises `OSError`."""
    mask = loss_mask_prefix(prefix)
    prefixes = [prefix, mask] if os.path.exists(f"{mask}.idx") else [prefix]
    return _digest_of(
        [f"{each}{end}" for each in prefixes for end in (".idx", ".bin")], sample_bytes
    )


def _model_fingerprint(folder: Path) -> str:
    """The same of a Hugging Face model's weights and settings, as users replace them under one
    path; that of no file for a name of the hub, whose revisions rarely change the weights."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    kinds = (".safetensors", ".bin")
    found = [str(file) for file in files if file.suffix in kinds or file.name == "config.json"]
    return _digest_of(found, sample_bytes_for(len(found)))


def _digest_of(paths: Iterable[str], sample_bytes: int) -> str:
    digest = hashlib.sha256()
    for path in paths:
        state = state_of(os.stat(path))
        question = ("sample", os.path.abspath(path), state, sample_bytes)
        known = MEMO.find(*question)
        found = bytes.fromhex(known) if known else _sample(path, state, sample_bytes)
        MEMO.keep(found.hex(), *question)
        digest.update(f"{state[0]} ".encode() + found)
    return digest.hexdigest()


def _sample(path: str, state: State, sample_bytes: int) -> bytes:
    digest = hashlib.sha256()
    size = _BLOCK_BYTES if sample_bytes >= 16 * _BLOCK_BYTES else _SMALL_BLOCK_BYTES
    blocks, wanted = -(-state[0] // size), max(2, sample_bytes // size)
    chosen = np.unique(np.linspace(0, max(blocks - 1, 0), min(blocks, wanted)).astype(int))
    with open(path, "rb") as file:
        for block in chosen.tolist():
            file.seek(block * size)
            digest.update(file.read(size))
    return digest.digest()


def check_same_on_all_ranks(identity: Identity, world: DataParallelGroup) -> None:
    """Raises `RankDivergenceError` where a host reads another dataset. Every rank must call."""
    entries = [["the tokenizer", identity["tokenizer"]]]
    entries += [*identity["sources"], *identity["targets"]]
    entries += [["the model", identity["base"]]] if "base" in identity else []
    bits = [np.frombuffer(bytes.fromhex(digest)[:8]) for _, digest in entries]
    world.check_equal(np.concatenate(bits), [name for name, _ in entries], "the data files")


def check_identity(before: Identity, now: Identity, *, accept_changes: bool) -> None:
    """Refuses a checkpoint that rests on other data, and says what differs.

    With `accept_changes`, a dataset of the same name, or the model under adapters, may have other
    content. Raises `CheckpointError`; `ConfigError` where accepting the change would help.
    """
    if before["tokenizer"] != now["tokenizer"]:
        raise CheckpointError(
            "the checkpoint was trained with another tokenizer (sha256 "
            f"{before['tokenizer'][:12]}..., now {now['tokenizer'][:12]}...); its weights mean "
            "nothing to this one: use that tokenizer, or another run_dir"
        )
    for kind in ("sources", "targets"):
        names = [[name for name, _ in entries] for entries in (before[kind], now[kind])]
        if names[0] != names[1]:
            raise CheckpointError(
                f"the checkpoint's {kind} are {', '.join(names[0])}; the configuration's are "
                f"{', '.join(names[1])}; use the same in the same order, or another run_dir"
            )
    changed = [
        name
        for kind in ("sources", "targets")
        for (name, old), (_, new) in zip(before[kind], now[kind], strict=True)
        if old != new
    ]
    if before.get("base", now.get("base")) != now.get("base"):  # earlier releases kept none
        changed.append("proxy.path")
    if changed and not accept_changes:
        raise ConfigError(
            f"{', '.join(changed)}: the content is not that which the checkpoint was trained on; "
            "restore the files, choose another run_dir, or go on with the new content by "
            "--accept-changes"
        )

"""The manifest of a dataset: `PREFIX.json` beside `.bin` and `.idx`, written last."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.config import strict_yaml
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.text_files import decode_text, parse_json

FORMAT = "megatron_fastmix.manifest"


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord:
    """The tokenizer that wrote a dataset."""

    tokenizer_type: str
    tokenizer_model: str | None
    """File name of the model, without its folder."""
    sha256: str
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class InputRecord:
    """An input file as it was when it was read."""

    path: str
    bytes: int
    modified_ns: int
    """Time of last change, nanoseconds since 1970: with the size it tells a changed file."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one indexed dataset holds and where it is from."""

    name: str
    documents: int
    sequences: int
    """Megatron cuts samples across sequences; a plain document is one sequence."""
    tokens: int
    text_bytes: int
    """UTF-8 bytes of text that became tokens."""
    empty_documents: int
    bad_lines: int
    """Malformed records of the inputs that were skipped (of all splits together)."""
    duplicates_removed: int
    """Documents left out because a held-out dataset has them."""
    held_out: bool
    """Whether it is a validation, test or target dataset, which training must not contain."""
    loss_mask_tokens: int | None
    """Tokens that count in the loss by the dataset `PREFIX_loss_mask`; None without one."""
    bin_sha256: str
    idx_sha256: str
    append_eod: bool
    recipe: str
    """sha256 over everything that decides the content: inputs, tokenizer and options."""
    tokenizer: TokenizerRecord
    inputs: tuple[InputRecord, ...]
    part_of: str | None = None
    """Last part of the prefix of which this is one part, by content or by a field; None for a
    dataset that is not split."""
    empty_parts: tuple[str, ...] = ()
    """Last parts of the prefixes of the same split to which no document goes; not written."""
    licence: str | None = None
    origin: str | None = None
    format: str = FORMAT


def input_records(paths: Iterable[str | Path]) -> tuple[InputRecord, ...]:
    """What the files are now. Raises `DataError` for one that is missing or empty."""
    records = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise DataError(f"{path}: cannot read the input: {error.strerror}") from None
        if status.st_size == 0:
            raise DataError(f"{path}: the input is empty; remove it or make it again")
        records.append(
            InputRecord(path=str(path), bytes=status.st_size, modified_ns=status.st_mtime_ns)
        )
    return tuple(records)


def manifest_path(prefix: str | Path) -> Path:
    """`PREFIX.json`; the prefix may contain dots."""
    return Path(f"{prefix}.json")


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Writes `PREFIX.json` atomically."""
    content = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    write_atomically(manifest_path(prefix), content)


def read_manifest(prefix: str | Path) -> Manifest | None:
    """The manifest of the dataset at `prefix`; None for a dataset that has none.

    A `PREFIX.json` of somebody else's, such as the text that the dataset was made from, is none.
    Raises `DataError` for a manifest of ours that is damaged.
    """
    path = manifest_path(prefix)
    fix = "preprocess the corpus again, or remove the file"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot read the manifest: {error.strerror}; {fix}") from None
    try:
        values: Any = parse_json(decode_text(content))
    except ValueError as error:
        if FORMAT.encode() not in content:
            return None
        raise DataError(f"{path}: the manifest is damaged: {error}; {fix}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        return None
    try:
        return strict_yaml.from_dict(Manifest, values)
    except ConfigError as error:
        raise DataError(
            f"{path}: not a dataset manifest of this version: {error}; preprocess the corpus again"
        ) from None


def check_same_tokenizer(prefixes: dict[str, str | Path], sha256: str | None = None) -> None:
    """Refuses datasets (name to prefix) that were written by different tokenizers.

    With `sha256`, all must have been written by that tokenizer. Datasets without a manifest
    cannot be judged and pass. Raises `DataError` that names the datasets.
    """
    found: dict[str, list[str]] = {}
    for name, prefix in prefixes.items():
        manifest = read_manifest(prefix)
        if manifest is not None:
            found.setdefault(manifest.tokenizer.sha256, []).append(name)
    if sha256 is not None:
        strangers = [name for other, names in found.items() if other != sha256 for name in names]
        if strangers:
            raise DataError(
                f"{', '.join(strangers)}: written by another tokenizer than the configured one "
                f"(sha256 {sha256[:12]}...); preprocess them with it, or configure theirs"
            )
    if len(found) > 1:
        groups = "; ".join(f"{', '.join(names)}: {key[:12]}..." for key, names in found.items())
        raise DataError(
            f"datasets of different tokenizers cannot be mixed ({groups}); preprocess all of them "
            "with one tokenizer"
        )

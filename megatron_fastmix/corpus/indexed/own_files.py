"""Which files this package writes beside text, so that it neither reads nor overwrites them as
text: the files of each dataset, and what earlier runs left in a folder."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.corpus.indexed.output_lock import LOCK_END
from megatron_fastmix.corpus.indexed.writer import INDEX_MAGIC, INDEX_VERSION
from megatron_fastmix.dataset_paths import MASK_SUFFIX, loss_mask_prefix
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.same_file import file_keys

PARTIALS = (".bin.partial", ".lengths.partial", ".documents.partial", ".idx.partial")
_DIGESTS = (".digests", ".digests.partial")
_TAIL_BYTES = 200
_MANIFEST_HEAD = b'{\n  "name": '
_MANIFEST_TAIL = b'"format": "megatron_fastmix.manifest"'
# How `json.dumps` begins our other files; a text's first key has to be another for it to be read.
_JOURNAL_HEAD = b'{\n "recipe": "'
_SPLIT_BY_HEAD = b'{\n "split_by_sha256": "'
_TOKENIZER_HEAD = b'{\n  "settings": {'
_PROVENANCE_HEAD = b'{\n  "recipe": {'
_PROVENANCE_NAME = "SOURCES.json"


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file that is to be written."""

    path: str
    of: str
    """What writes it, for messages: `dataset out/web`."""


def dataset_files(prefix: str, *, masked: bool, held_out: bool) -> list[str]:
    """Every file that the writing of one dataset makes, those under way among them."""
    names = [f"{prefix}{end}" for end in (".bin", ".idx", ".json", ".journal.json", *PARTIALS)]
    if masked:
        names += [f"{loss_mask_prefix(prefix)}{end}" for end in (".bin", ".idx", *PARTIALS)]
    if held_out:
        names += [f"{prefix}{end}" for end in _DIGESTS]
    return names


def check_outputs(outputs: Iterable[Output], inputs: dict[str, Sequence[str]]) -> None:
    """Raises `ConfigError` for an output that is an input or another's output, by whatever path, a
    folder, or a file that is none of this package's or Megatron's: JSON, or a dataset's .bin or
    .idx.

    `inputs` are files by what reads them. Nothing may have been written yet.
    """
    read: dict[object, tuple[str, str]] = {}
    for reader, paths in inputs.items():
        for path in paths:
            read |= dict.fromkeys(file_keys(path), (path, reader))
    written: dict[object, Output] = {}
    for output in outputs:
        keys = file_keys(output.path)
        if os.path.isdir(output.path):
            raise ConfigError(
                f"{output.path}: is a folder, and {output.of} would write a file there; choose "
                "another place for what is written"
            )
        for key in keys & read.keys():
            path, reader = read[key]
            raise ConfigError(
                f"{path}: is both input and output: {reader} reads it, and {output.of} would write "
                f"{output.path} over it; choose another place for what is written"
            )
        for key in keys & written.keys():
            other = written[key]
            raise ConfigError(
                f"{output.path}: written twice, by {other.of} and by {output.of}; choose another "
                "place for one of them"
            )
        if _is_a_users(output.path):
            raise ConfigError(
                f"{output.path}: is there, and no file of an earlier run; {output.of} would write "
                "over it: move it away, or choose another place for what is written"
            )
        written |= dict.fromkeys(keys, output)


def is_ours(path: str) -> bool:
    """Whether `preprocess`, `train-tokenizer`, `demo` or Megatron wrote the file, by its content.

    It is no text to train on, though a folder or a pattern may match it.
    """
    if path.endswith((*PARTIALS, ".digests.partial", LOCK_END)):
        return True
    stem, end = os.path.splitext(path)
    if end == ".idx":
        return _begins(path, INDEX_MAGIC)
    if end == ".bin":
        return _begins(f"{stem}.idx", INDEX_MAGIC)
    if end == ".digests":
        return is_manifest(f"{stem}.json")
    if _begins(f"{path}.json", _TOKENIZER_HEAD):
        return True  # a tokenizer, beside the record of its training
    if end != ".json":
        return False
    if os.path.basename(path) == _PROVENANCE_NAME:
        return _begins(path, _PROVENANCE_HEAD)
    if path.endswith(".journal.json"):
        return _begins(path, _JOURNAL_HEAD)
    if path.endswith(".split_by.json"):
        return _begins(path, _SPLIT_BY_HEAD)
    return is_manifest(path) or (os.path.exists(stem) and _begins(path, _TOKENIZER_HEAD))


def is_loss_mask(prefix: str) -> bool:
    """Whether a loss mask of ours is at `prefix`: an index of uint8, which Megatron writes for no
    tokens, without a manifest, which a dataset of its own has."""
    head = struct.pack("<QB", INDEX_VERSION, 1)
    return _begins(f"{prefix}.idx", INDEX_MAGIC + head) and not is_manifest(f"{prefix}.json")


def _is_a_users(path: str) -> bool:
    """Whether a file that is to be replaced is someone's own, which nobody expects to lose: JSON,
    of which Megatron writes none beside a dataset, or a .bin or .idx of no dataset."""
    stem, end = os.path.splitext(path)
    known = end in {".json", ".bin", ".idx"}
    if not known or not os.path.isfile(path) or not os.path.getsize(path):
        return False
    if end != ".json":
        return not is_ours(path) and not _has_traces(stem)
    # A manifest that was cut, or is of another version, is written anew.
    return not is_ours(path) and not _begins(path, _MANIFEST_HEAD)


def _has_traces(prefix: str) -> bool:
    """Whether a run of ours was at `prefix`, which may have stopped where the .bin has no index."""
    own = prefix.removesuffix(MASK_SUFFIX)
    return (
        any(os.path.exists(f"{prefix}{end}") for end in PARTIALS)
        or any(is_manifest(f"{each}.json") for each in (prefix, own))
        or any(_begins(f"{each}.journal.json", _JOURNAL_HEAD) for each in (prefix, own))
        or _begins(f"{prefix}.bin.json", _TOKENIZER_HEAD)
    )


def is_manifest(path: str) -> bool:
    """Whether the file is the manifest of a dataset that we wrote."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return _MANIFEST_TAIL in file.read()
    except OSError:
        return False


def _begins(path: str | Path, head: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(head)) == head
    except OSError:
        return False

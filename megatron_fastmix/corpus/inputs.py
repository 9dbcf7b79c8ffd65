"""Which files an input means: files, folders and globs, and the format of each file."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from megatron_fastmix.corpus.own_files import is_ours
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.same_file import file_keys

InputFormat = Literal["auto", "jsonl", "parquet", "text", "lines"]
"""`text`: a document per file; `lines`: a document per line; `auto`: by the file's name."""

_FORMATS: dict[str, InputFormat] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
}
COMPRESSIONS = (".gz", ".zst")
_UNREAD = {
    **dict.fromkeys((".bz2", ".xz", ".lz4", ".lzma", ".br", ".7z", ".rar", ".zip"), "packed so"),
    **dict.fromkeys((".tar", ".tgz"), "archives of files"),
    **dict.fromkeys((".csv", ".tsv"), "tables in text"),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro"), "tables of this kind"),
    **dict.fromkeys((".xlsx", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".pt"), "of this kind"),
}
"""Ends of names whose files are not read in any input format, and what they are."""


def file_format(path: str | Path) -> InputFormat | None:
    """The format that a file's name tells, under a `.gz` or `.zst` too; None if it tells none."""
    name = Path(path)
    if name.suffix in COMPRESSIONS:
        name = name.with_suffix("")
    return _FORMATS.get(name.suffix.lower())


def expand_inputs(inputs: Sequence[str], input_format: InputFormat = "auto") -> list[str]:
    """The files that `inputs` name, each once however it is spelled, in the order given and sorted
    within one input.

    A folder means all files in it and below whose names tell a format (all files where
    `input_format` is given); hidden ones are left out, and links to folders are followed once.
    What this package wrote there itself, such as manifests, is left out of folders and globs.
    Raises `DataError` for an input that means no file, `ConfigError` for a file whose name tells
    no format.
    """
    files: dict[str, None] = {}
    for name in inputs:
        if os.path.isdir(name):
            found = sorted(
                path
                for path in _walk(name)
                if (input_format != "auto" or file_format(path)) and not is_ours(path)
            )
        elif os.path.exists(name):
            if is_ours(name):
                raise DataError(f"{name}: no text, but a file that an earlier run wrote beside it")
            found = [name]
        elif glob.has_magic(name):
            found = sorted(
                path
                for path in glob.glob(name, recursive=True)
                if os.path.isfile(path) and not is_ours(path)
            )
        else:
            raise DataError(f"{name}: cannot read the input: no such file, folder or match")
        if not found:
            raise DataError(
                f"{name}: no input file found there; known names end in {', '.join(_FORMATS)}, "
                f"with or without {' or '.join(COMPRESSIONS)}; set the input format for others"
            )
        files.update(dict.fromkeys(found))
    _once(files)
    for path in files:
        if input_format == "auto" and file_format(path) is None:
            end = Path(path).suffix.lower()
            if end in _UNREAD:
                raise ConfigError(
                    f"{path}: files {_UNREAD[end]} ({end}) are not read; make of it JSON lines "
                    "(.jsonl, .jsonl.gz, .jsonl.zst) or Parquet"
                )
            raise ConfigError(
                f"{path}: the name tells no format; set the input format to jsonl, parquet, text "
                "(a document per file) or lines (a document per line)"
            )
    return list(files)


def _once(files: dict[str, None]) -> None:
    """Takes out the paths whose file another has before them."""
    seen: set[object] = set()
    for path in list(files):
        keys = file_keys(path)
        if keys & seen:
            del files[path]
        seen |= keys


def _walk(root: str) -> Iterator[str]:
    """Files below `root`; a folder that was already entered, by whatever name, is not again."""
    entered = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            subfolders.clear()
            continue
        entered.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path):
                yield path

"""Which files an input means: files, folders and globs, and the format of each file."""

from __future__ import annotations

import functools
import glob
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from megatron_fastmix.corpus.indexed.own_files import is_ours
from megatron_fastmix.dataset_paths import check_folders_readable
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.same_file import file_keys
from megatron_fastmix.text_list import listed

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
_TEXT_UNREAD = {
    **dict.fromkeys((".bz2", ".xz", ".lz4", ".lzma", ".br", ".7z", ".rar", ".zip"), "packed so"),
    **dict.fromkeys((".tar", ".tgz"), "archives of files"),
    **dict.fromkeys((".csv", ".tsv"), "tables in text"),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro"), "tables of this kind"),
}
_OTHER_UNREAD = (".xlsx", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".pt")
_UNREAD = _TEXT_UNREAD | dict.fromkeys(_OTHER_UNREAD, "of this kind")
"""Ends of names whose files are not read in any input format, and what they are."""
_UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".incomplete")
"""Ends of names of files that a copy or a download has not finished."""


def file_format(path: str | Path) -> InputFormat | None:
    """The format that a file's name tells, under a `.gz` or `.zst` too; None if it tells none."""
    name = Path(path)
    if name.suffix.lower() in COMPRESSIONS:
        name = name.with_suffix("")
    return _FORMATS.get(name.suffix.lower())


def expand_inputs(inputs: Sequence[str], input_format: InputFormat = "auto") -> list[str]:
    """The files that `inputs` name, each once however it is spelled, in the order given and sorted
    within one input.

    A folder means all files in it and below whose names tell a format (all files where
    `input_format` is given); hidden ones are left out, and links to folders are followed once. It
    may not hold files beside them that look like text and are not read. What this package wrote
    there itself, such as manifests, is left out of folders and globs. Raises `DataError` for an
    input that means no file, for a link to nothing and for a folder that cannot be read,
    `ConfigError` for a file whose name tells no format.
    """
    files: dict[str, None] = {}
    for name in inputs:
        if os.path.isdir(name):
            found = sorted(path for path in _walk(name) if not is_ours(path))
            if input_format == "auto":
                _check_left_out(name, [path for path in found if not file_format(path)])
                found = [path for path in found if file_format(path)]
        elif os.path.exists(name):
            if not os.path.isfile(name):
                raise DataError(
                    f"{name}: is a pipe or a device, not a file, and an input may be read more "
                    "than once; write it into a file first, and give that"
                )
            if is_ours(name):
                raise DataError(f"{name}: no text, but a file that an earlier run wrote beside it")
            found = [name]
        elif glob.has_magic(name):
            check_folders_readable(name, "the input")
            matches = glob.glob(name, recursive=True)
            found = sorted(path for path in matches if _is_file(path) and not is_ours(path))
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


def _check_left_out(folder: str, paths: Sequence[str]) -> None:
    """Raises `ConfigError` for a file of a folder that looks like text and is not read; tells of
    those that are of another kind."""
    others = []
    for path in paths:
        end = Path(path).suffix.lower()
        if end in _UNFINISHED:
            what = f"is not finished, by its name ({end}); finish the copy or remove it"
        elif end in _TEXT_UNREAD:
            what = f"is not read: files {_TEXT_UNREAD[end]} ({end}); make of it JSON lines"
        elif end in COMPRESSIONS:
            what = f"has no name that tells a format under {end}; rename it, as to x.jsonl{end}"
        else:
            others += [path] if end in _OTHER_UNREAD else []
            continue
        raise ConfigError(
            f"{path}: {what}, move it out of {folder}, or name the files to read by a pattern, "
            f"such as {os.path.join(folder, '**', '*.jsonl')}"
        )
    if others:
        _tell(f"note: {folder}: of a kind that is not read, so left out: {listed(others)}")


@functools.cache
def _tell(note: str) -> None:
    """Once, though an input may be looked at more than once."""
    print(note, file=sys.stderr)


def _is_file(path: str) -> bool:
    """Raises `DataError` for a link to nothing, and for what cannot be looked at."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        what = error.strerror
        if os.path.islink(path):
            what = f"it links to {os.readlink(path)}: {what}"
        raise DataError(f"{path}: cannot read the input: {what}; mend or remove it") from None


def _refuse_folder(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot read the folder: {error.strerror}; give this user the right to, "
        "or move it out of the input"
    )


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
    for folder, subfolders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            subfolders.clear()
            continue
        entered.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and _is_file(path):
                yield path

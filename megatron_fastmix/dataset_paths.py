"""From what a user writes as the path of a source to the prefixes of its indexed datasets.

The one place that does so: a source is one or many datasets (shards), given as a prefix, a folder,
a glob, or a list of these.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from megatron_fastmix.errors import DataError
from megatron_fastmix.same_file import dataset_keys
from megatron_fastmix.text_list import listed

DatasetPath = str | Sequence[str]
"""A prefix, as in Megatron's --data-path; a folder; a glob; or a list of these."""

ENDS = (".idx", ".bin")
MASK_SUFFIX = "_loss_mask"
"""Ends the prefix of the loss mask beside an answer-only dataset: no dataset of its own."""

PARTIAL_END = ".partial"
"""Ends the names of a dataset's files until they are complete."""

_GLOB = re.compile(r"[*?[]")
_SHOWN = 8


def loss_mask_prefix(prefix: str | os.PathLike[str]) -> str:
    """Prefix of the dataset that holds the loss mask of the answer-only dataset at `prefix`.

    It has the same sequences and documents, of uint8: entry i is 1 where token i counts in the
    loss as a label. A trainer that shifts tokens to get labels shifts the mask alike.
    """
    return f"{prefix}{MASK_SUFFIX}"


def find_datasets(path: DatasetPath, where: str) -> tuple[str, ...]:
    """The prefixes of the datasets at `path`, one or more; `where` names the place in errors.

    A folder stands for the datasets that lie in it, a glob (`*`, `?`, `[...]`, `**` for any depth)
    for those whose prefixes it fits; both sorted as people count, so that `part_2` comes before
    `part_10`. A list keeps its order. A single prefix is returned as it is, whether or not there is
    a dataset. Raises `DataError` for a folder or a glob without a dataset, which says what stands
    there; for a dataset of which one of the two files is missing; for one that occurs twice.
    """
    written = [path] if isinstance(path, str) else list(path)
    if not written:
        raise DataError(f"{where}: path is an empty list; name one dataset or more")
    found = [prefix for each in written for prefix in _expand(each, where)]
    if len(found) > 1:
        seen: dict[object, str] = {}
        for prefix in found:
            for key in dataset_keys(prefix):
                if key in seen:
                    raise DataError(
                        f"{where}: {prefix} is {seen[key]}, given twice; one epoch of a source "
                        "reads a dataset once: give it once"
                    )
            seen |= dict.fromkeys(dataset_keys(prefix), prefix)
    return tuple(found)


def is_pattern(path: DatasetPath) -> bool:
    """Whether the file system decides which datasets `path` stands for."""
    if not isinstance(path, str):
        return any(map(is_pattern, path))
    if os.path.exists(f"{path}.idx"):
        return False
    return bool(_GLOB.search(path)) or os.path.isdir(path)


def as_people_count(text: str) -> list[tuple[int, int, str]]:
    """A sort key by which `part_2` comes before `part_10`; equal for equal texts alone."""
    parts = re.split(r"([0-9]+)", text)
    key = [(0, int(p), "") if i % 2 else (1, 0, p) for i, p in enumerate(parts)]
    return [*key, (2, 0, text)]  # 01 and 1 are the same number


def what_stands_there(prefix: str) -> str:
    """The datasets, or else the files, near a prefix where there is none, for an error."""
    folder = os.path.dirname(prefix) or "."
    while not os.path.isdir(folder):
        above = os.path.dirname(folder) or "."
        if above == folder:
            return "nothing stands there"
        folder = above
    try:
        names = sorted((n for n in os.listdir(folder) if n[0] != "."), key=as_people_count)
    except OSError as error:
        return f"{folder} cannot be read ({error.strerror})"
    datasets = [n.removesuffix(".idx") for n in names if n.endswith(".idx")]
    datasets = [n for n in datasets if not _is_mask(n, datasets)]
    shown = datasets or names
    if not shown:
        return f"{folder} is empty"
    kind = "the datasets" if datasets else "no dataset but"
    return f"{folder} has {kind} {listed(shown, _SHOWN)}"


def nearest_dataset(prefix: str) -> str | None:
    """Which dataset may have been meant by `prefix`, where there is none, and from where it was
    looked for; None where nothing is alike."""
    for end in ENDS:
        if prefix.endswith(end) and os.path.exists(prefix):
            return f"use {prefix.removesuffix(end)}"
    folder, stem = os.path.split(prefix)
    try:
        files = sorted(os.listdir(folder or "."))
    except OSError:
        return None
    names = [name.removesuffix(".idx") for name in files if name.endswith(".idx")]
    like = [name for name in names if name.startswith(f"{stem}_") and not _is_mask(name, names)]
    like += [name for name in difflib.get_close_matches(stem, names) if name not in like]
    if not like:
        return None
    named = ", ".join(os.path.join(folder, name) for name in like[:3])
    return f"there is {named} (looked in {os.path.abspath(folder)})"


def check_folders_readable(pattern: str, where: str) -> None:
    """Raises `DataError` for a folder that `**` would enter and this user cannot read: a glob goes
    past it in silence."""
    before, deep, _ = pattern.partition("**")
    if not deep or _GLOB.search(before):
        return

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{where}: {error.filename}: cannot read the folder: {error.strerror}; give this user "
            f"the right to, or narrow {pattern}"
        )

    root = before if os.path.isdir(before) else os.path.dirname(before) or "."
    for _, subfolders, _ in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]


def _expand(path: str, where: str) -> list[str]:
    if not path or not is_pattern(path):
        return [path]
    folder = os.path.isdir(path)
    pattern = os.path.join(glob.escape(path), "*") if folder else path
    for end in ENDS:
        pattern = pattern.removesuffix(end)
    if os.path.basename(pattern) == "**":  # which alone is read as *
        pattern = os.path.join(pattern, "*")
    check_folders_readable(pattern, where)
    for file in glob.iglob(f"{pattern}.bin{PARTIAL_END}", recursive=True):
        prefix = file.removesuffix(f".bin{PARTIAL_END}")
        if not os.path.exists(f"{prefix}.bin"):
            raise DataError(
                f"{where}: {file} is there and {prefix}.bin is not: its preprocess is under way or "
                "was interrupted; run the same preprocess again, it continues where it stopped, or "
                f"narrow {path} to what belongs to it"
            )
    prefixes: Counter[str] = Counter()
    missing: dict[str, str] = {}
    for end, other in (ENDS, ENDS[::-1]):
        for file in glob.iglob(pattern + end, recursive=True):
            prefix = file.removesuffix(end)
            prefixes[prefix] += 1
            missing[prefix] = other
    prefixes = Counter({p: n for p, n in prefixes.items() if not _is_mask(p, prefixes)})
    broken = sorted(prefix for prefix, count in prefixes.items() if count < len(ENDS))
    if broken:
        end = missing[broken[0]]
        raise DataError(
            f"{where}: {broken[0]}{end} is missing beside {broken[0]}"
            f"{ENDS[0] if end == ENDS[1] else ENDS[1]}; copy the dataset whole, or narrow {path} "
            "to what belongs to it"
        )
    if not prefixes:
        deeper = os.path.join(path, "**", "*") if folder else path
        hint = ""
        if folder and next(glob.iglob(f"{glob.escape(path)}/**/*.idx", recursive=True), None):
            hint = f", its subfolders have some: write {deeper}"
        kind = "folder" if folder else "glob"
        near = what_stands_there(os.path.join(path, "x") if folder else _before_glob(path))
        raise DataError(f"{where}: the {kind} {path} holds no dataset{hint}; {near}")
    return sorted(prefixes, key=as_people_count)


def _before_glob(path: str) -> str:
    """The part of a pattern above its first special character."""
    found = _GLOB.search(path)
    return path[: found.start()] if found else path


def _is_mask(prefix: str, others: Iterable[str]) -> bool:
    return prefix.endswith(MASK_SUFFIX) and prefix.removesuffix(MASK_SUFFIX) in others

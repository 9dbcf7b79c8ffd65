"""Which datasets of a blend are shards of one source, told by their names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from megatron_fastmix.dataset_paths import as_people_count
from megatron_fastmix.errors import ConfigError

_ENDS = re.compile(r"_(text|content)(_(document|sentence))?$")
"""What Megatron's preprocess_data.py adds to the name of its output."""
_NUMBER = re.compile(
    r"(?P<stem>.*?)(?P<word>[._-]?(?:part|shard|chunk|split|file))?[._-]?"
    r"(?P<number>[0-9]+)(?P<of>[._-]of[._-][0-9]+)?",
    re.IGNORECASE,
)


def join_shards(
    prefixes: Sequence[str], patterns: Sequence[str] = (), *, numbered: bool = True
) -> dict[str, list[str]]:
    """The datasets of each source, by a name made of theirs, in the order of `prefixes`.

    What fits a pattern of `patterns` is one source: `web_*` against the last part of a prefix, or
    against all of it where the pattern has a slash; `NAME=PATTERN` names it. With `numbered`, so
    are datasets of one folder whose names differ in a number alone, written as numbers of parts
    are: with leading zeros (`web_00001`), after a word (`web-part-3`), or before `of`
    (`web_1-of-8`). Plain numbers such as years join nothing.

    Raises `ConfigError` for a pattern that fits nothing and for a dataset that two patterns fit.
    """
    owners: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for text in patterns:
        pattern = text.rpartition("=")[2]
        fitting = [prefix for prefix in prefixes if _fits(prefix, pattern)]
        if not fitting:
            raise ConfigError(
                f"--join {text}: fits no dataset of the blend, whose first is {prefixes[0]}; "
                "write a pattern such as 'web_*'"
            )
        taken = next((prefix for prefix in fitting if prefix in owners), None)
        if taken is not None:
            raise ConfigError(
                f"--join {text}: {taken} fits --join {owners[taken]} too; a dataset has one "
                "source: narrow the patterns"
            )
        owners |= dict.fromkeys(fitting, text)
        groups[text] = fitting
    titles = {text: text.rpartition("=")[0] or _literal(text) for text in patterns}
    rest = [prefix for prefix in prefixes if prefix not in owners]
    for key, (title, shards) in (_numbered(rest) if numbered else {}).items():
        owners |= dict.fromkeys(shards, key)
        groups[key], titles[key] = shards, title
    joined: dict[str, list[str]] = {}
    done: set[str] = set()
    for prefix in prefixes:
        group = owners.get(prefix, "")
        if group and group in done:
            continue
        done.add(group)
        title = titles[group] if group else PurePath(prefix).name or prefix
        members = sorted(groups[group], key=as_people_count) if group else [prefix]
        joined[_unique(title, joined)] = members
    return joined


def _numbered(prefixes: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """Groups that differ in the number of a part alone: their name and datasets."""
    groups: dict[str, list[str]] = {}
    found: dict[str, re.Match[str]] = {}
    for prefix in prefixes:
        path = PurePath(prefix)
        end = _ENDS.search(path.name)
        match = _NUMBER.fullmatch(path.name[: end.start()] if end else path.name)
        if match is None or not match["stem"].strip("._-"):
            continue
        found[prefix] = match
        same = (path.parent, match["stem"], match["word"], match["of"], end and end[0])
        groups.setdefault(f"number {same}", []).append(prefix)
    return {
        key: (found[shards[0]]["stem"].strip("._-"), shards)
        for key, shards in groups.items()
        if len(shards) > 1 and any(_is_part(found[shard]) for shard in shards)
    }


def _is_part(match: re.Match[str]) -> bool:
    return bool(match["word"] or match["of"] or re.match("0.", match["number"]))


def _fits(prefix: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(prefix if "/" in pattern else PurePath(prefix).name, pattern)


def _literal(pattern: str) -> str:
    """A name for a pattern: what it says before its first special character."""
    return re.split(r"[*?[]", PurePath(pattern).name)[0].strip("._-") or "joined"


def _unique(name: str, taken: Mapping[str, object]) -> str:
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique

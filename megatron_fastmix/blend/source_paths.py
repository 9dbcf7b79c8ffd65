"""Which datasets of a blend are which source of the mixture, told by their paths."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from megatron_fastmix.errors import DataError
from megatron_fastmix.text_list import listed

logger = logging.getLogger(__name__)

_NAMED = 20
_HOW = "write its path as the mixture has it, or say it: --fastmix-source NAME=PATH,PATH,..."


def match_sources(
    sources: Mapping[str, Sequence[str]],
    prefixes: Sequence[str],
    *,
    optional: Collection[str] = (),
) -> dict[str, list[int]]:
    """The datasets of each source: indices into `prefixes`, in their order.

    A path of `sources` is a prefix, a folder that holds the shards of its source, or a pattern
    such as `/data/web_*`. What no path fits is matched by its last part (data that was moved),
    where that fits one dataset and one source alone; a log line says so.

    Args:
        sources: the paths of each source by its name.
        prefixes: those of the blend.
        optional: sources that may have no dataset; they are left out of the result.

    Raises `DataError` that names each dataset without a source, each source without a dataset, and
    a dataset that is given twice or belongs to two sources.
    """
    places = [os.path.realpath(prefix) for prefix in prefixes]
    counts = Counter(places)
    twice = sorted({p for p, place in zip(prefixes, places, strict=True) if counts[place] > 1})
    if twice:
        raise DataError(f"the blend has {twice[0]} more than once; give each dataset once")
    exact = {os.path.realpath(path): name for name, paths in sources.items() for path in paths}
    folders, patterns = _wider(sources)
    owners: dict[int, str] = {}
    for number, place in enumerate(places):
        if place in exact:
            owners[number] = exact[place]
            continue
        held = {name for name, pattern in patterns if fnmatch.fnmatchcase(place, pattern)}
        for folder in _above(place):
            held |= folders.get(folder, set())
        fitting = [name for name in sources if name in held]
        if len(fitting) > 1:
            raise DataError(
                f"{prefixes[number]} belongs to the sources {', '.join(fitting)}; a dataset has "
                "one source: narrow their paths"
            )
        if fitting:
            owners[number] = fitting[0]
    _match_last_parts(sources, prefixes, owners)
    found: dict[str, list[int]] = {name: [] for name in sources}
    for number in sorted(owners):
        found[owners[number]].append(number)
    strangers = [prefix for number, prefix in enumerate(prefixes) if number not in owners]
    missing = [name for name, numbers in found.items() if not numbers and name not in optional]
    if strangers or missing:
        parts = []
        if strangers:
            parts.append(f"no source of the mixture: {listed(strangers, _NAMED)}")
        if missing:
            lost = [f"{name} ({listed(sources[name], 3) or 'no path'})" for name in missing]
            parts.append(f"sources without a dataset in the blend: {listed(lost, _NAMED)}")
        raise DataError(f"{'; '.join(parts)}. For each, {_HOW}")
    for name, numbers in found.items():
        if 0 < len(numbers) < len(sources[name]):
            logger.warning(
                "the blend has %d of the %d datasets of source %s, which get all of its weight",
                len(numbers),
                len(sources[name]),
                name,
            )
    return {name: numbers for name, numbers in found.items() if numbers}


def _match_last_parts(
    sources: Mapping[str, Sequence[str]], prefixes: Sequence[str], owners: dict[int, str]
) -> None:
    """Adds to `owners` what the last part of a path or the source's name tells without doubt."""
    lasts = [_last(prefix) for prefix in prefixes]
    alike = Counter(lasts)
    owned = set(owners.values())
    parts = {n: {_last(path) for path in paths} for n, paths in sources.items() if n not in owned}
    named: dict[str, list[str]] = {}
    for name, of_name in parts.items():
        for part in {name, *of_name}:
            named.setdefault(part, []).append(name)
    for number, (prefix, last) in enumerate(zip(prefixes, lasts, strict=True)):
        if number in owners or len(named.get(last, ())) != 1 or alike[last] > 1:
            continue
        (name,) = named[last]
        if last in parts[name] or name not in owned:
            owned.add(name)
            owners[number] = name
            logger.warning("%s is taken for source %s, by the last part of its path", prefix, name)


def _last(path: str) -> str:
    return os.path.basename(path.rstrip("/"))


def _wider(
    sources: Mapping[str, Sequence[str]],
) -> tuple[dict[str, set[str]], list[tuple[str, str]]]:
    """What may hold several datasets: the sources by folder, without its last slash, and each with
    its patterns."""
    folders: dict[str, set[str]] = {}
    patterns: list[tuple[str, str]] = []
    for name, paths in sources.items():
        for path in paths:
            real = os.path.realpath(path)
            if any(character in path for character in "*?["):
                patterns.append((name, real))
            else:
                folders.setdefault(real.rstrip("/"), set()).add(name)
    return folders, patterns


def _above(place: str) -> Iterator[str]:
    """The folders above a path, without their last slash."""
    while place:
        place = place.rpartition("/")[0]
        yield place

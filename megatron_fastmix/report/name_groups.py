"""Groups of sources: those of the configuration, or of many sources those by the first word of
their names, such as web_en and web_de."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from megatron_fastmix.result.learned_mixture import LearnedMixture

WORD_END = re.compile(r"[^0-9A-Za-z]|(?<=[A-Za-z])(?=[0-9])")
FEWEST = 24
"""Below so many sources nobody needs groups."""


def name_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by what stands before their first separator; empty where that tells nothing: few
    names, one group, or hardly a name that shares its group."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(WORD_END.split(name, maxsplit=1)[0], []).append(name)
    if len(names) < FEWEST or not 1 < len(groups) <= len(names) // 2:
        return {}
    return groups


def groups_of(mixture: LearnedMixture) -> Mapping[str, Sequence[str]]:
    """The sources of each group; empty where there are none."""
    return mixture.members or name_groups(list(mixture.weights))

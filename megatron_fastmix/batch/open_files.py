"""How many open files and memory maps the datasets of a search take. Imports nothing heavy.

Megatron's own way holds 6 files and 5 maps for a dataset of text: two and one for its ids, one each
for its index, and for the three arrays of the cached order of samples. Of thousands of datasets
that is more than Linux gives a process (`vm.max_map_count` is 65,530), so a search of many keeps
the arrays in memory and reads ids from a file that it opens each time: 1 file and 1 map, those of
the index. Answer-only rows have a second dataset, their loss mask, and one array of the rows to
draw.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAN_ABOVE = 1000
"""Datasets of a search beyond which it keeps few files open."""
OTHER_FILES = 512
"""Files of Python, torch and the ranks' connections, generously."""
OTHER_MAPS = 6000
"""Maps of the same: libraries, heaps and stacks of threads."""


@dataclass(frozen=True, kw_only=True)
class OpenFiles:
    """What one rank holds."""

    files: int
    """Limited by RLIMIT_NOFILE."""
    maps: int
    """Limited by vm.max_map_count."""


def is_lean(datasets: int) -> bool:
    """Whether a search of so many datasets, targets included, keeps few files open."""
    return datasets > LEAN_ABOVE


def open_files(text: int, answer_only: int) -> OpenFiles:
    """What a rank needs for a search of so many datasets of text and of answer-only rows."""
    if is_lean(text + answer_only):
        held = text + 2 * answer_only
        return OpenFiles(files=OTHER_FILES + held, maps=OTHER_MAPS + held)
    return OpenFiles(
        files=OTHER_FILES + 6 * text + 7 * answer_only,
        maps=OTHER_MAPS + 5 * (text + answer_only),
    )

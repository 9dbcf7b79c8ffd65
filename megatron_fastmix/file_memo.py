"""What was found in files, remembered while they stay as they are, so that none is read twice.

A file is taken for the same as long as its size, time of change and inode are. What a process has
found it can hand to others, of this host or of a later start, by `save` and `load`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatron_fastmix.atomic_file import write_atomically

State = tuple[int, int, int]
"""Size in bytes, time of last change in nanoseconds (which nobody can set back), inode."""


def state_of(status: os.stat_result) -> State:
    """What tells a changed file."""
    return status.st_size, status.st_ctime_ns, status.st_ino


class FileMemo:
    """Answers, as JSON values, to questions that name files with their states."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}
        self._saved: set[str] = set()

    def find(self, *question: Any) -> Any | None:
        """The answer; None where nobody has it."""
        key = digest_of(*question)
        answer = self._found.get(key)
        if answer is not None:
            self._asked[key] = answer
        return answer

    def keep(self, answer: Any, *question: Any) -> None:
        """`answer`, not None, is that to `question` from now on."""
        key = digest_of(*question)
        self._found[key] = self._asked[key] = answer

    def load(self, path: str | Path) -> None:
        """Takes over what another process saved; of another release, or damaged, nothing."""
        try:
            content = json.loads(Path(path).read_bytes())
        except (OSError, ValueError):
            return
        if isinstance(content, dict) and content.get("release") == _release():
            found = content.get("found")
            if isinstance(found, dict):
                self._found |= found
                self._saved |= found.keys()

    def save(self, path: str | Path) -> None:
        """Writes what this process has asked for, if the file lacks any of it. A file system that
        refuses leaves the others to read for themselves."""
        if self._asked.keys() <= self._saved:
            return
        content = json.dumps({"release": _release(), "found": self._asked})
        with contextlib.suppress(OSError):
            write_atomically(path, content)
            self._saved |= self._asked.keys()

    def clear(self) -> None:
        """Forgets everything."""
        self._found.clear()
        self._asked.clear()
        self._saved.clear()


def digest_of(*question: Any) -> str:
    """32 hexadecimal digits that stand for the question."""
    text = json.dumps([str(part) for part in question])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _release() -> str:
    """Checks of another release may see more."""
    return version("megatron-fastmix")


MEMO = FileMemo()
"""That of this process."""

"""Good files damaged in every way that a disk, a copy or an editor may damage them: bytes flipped,
cut, moved and put in, and, where they are JSON or YAML, values of other types and keys left out.

The same files come every time. `EXAMPLES=600 pytest tests/unit/test_fuzz_*.py` tries more of them.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_fastmix.errors import FastMixError

EXAMPLES = int(os.environ.get("EXAMPLES", "40"))
"""Damaged files for each loader; all of them take less than a minute."""

ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    2**63,
    10**30,
    10**400,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "x",
    "a\0b",
    "\u202e<script>'\"$(x);\n",
    "\ud800",
    "1e400",
    "9" * 5000,
    "x" * 5000,
    [],
    [[]],
    ["x", 1, None],
    {},
    {"a": {"b": []}},
    {"": None},
]
ODD_IN_YAML: list[Any] = [
    *ODD_VALUES,
    datetime.date(1, 1, 1),
    datetime.datetime(9999, 12, 31, 23, 59, 59),
    b"\xff\0",
    {1: 2, None: 3},
    {"a", "b"},
]
"""What YAML has besides: dates, bytes, keys that are no text, sets."""

TEXTS = [
    b"\xff",
    b"\0",
    b"[" * 3000,
    b"9" * 5000,
    b"\xef\xbb\xbf",
    b"{}",
    b'"',
    b"\n",
    b"2024-13-99",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def altered(data: st.DataObject, value: Any, odd: list[Any] = ODD_VALUES) -> Any:
    """`value` with one to three of its parts replaced or left out."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3), label="changes")):
        found = list(places(value))
        if not found:
            return value
        *parents, last = data.draw(st.sampled_from(found), label="place")
        section = value
        for key in parents:
            section = section[key]
        change = data.draw(st.sampled_from(["replace", "replace", "replace", "remove"]))
        if change == "remove":
            del section[last]
        else:
            section[last] = copy.deepcopy(data.draw(st.sampled_from(odd), label="odd value"))
    return value


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """`content` with one to four changes of its bytes."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)), label="at")
        length = data.draw(st.sampled_from([1, 2, 8, 100]))
        match data.draw(st.sampled_from(["flip", "cut", "put in", "end", "twice", "number"])):
            case "flip" if changed:
                changed[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del changed[at : at + length]
            case "put in":
                changed[at:at] = data.draw(st.sampled_from(TEXTS))
            case "end":
                del changed[at:]
            case "twice":
                changed[at:at] = changed[at : at + length]
            case "number":
                changed[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    return bytes(changed)


class Case:
    """A good file, and what reads it."""

    def __init__(self, path: Path, load: Callable[[Path], Any]) -> None:
        self.path, self.load, self.content = path, load, path.read_bytes()

    def check(self, content: bytes) -> None:
        """Loads `content` in the place of the good file."""
        self.path.write_bytes(content)
        with contextlib.suppress(FastMixError):
            self.load(self.path)


def try_damage(case: Case) -> None:
    """Loads the good file, and damaged ones: every error must be one of the package."""
    case.load(case.path)
    is_yaml = case.path.suffix in (".yaml", ".yml")
    structured: Any = None
    if is_yaml:
        structured = yaml.safe_load(case.content)
    else:
        with contextlib.suppress(ValueError):
            structured = json.loads(case.content)

    def attempt(data: st.DataObject) -> None:
        if not isinstance(structured, dict | list) or not data.draw(
            st.booleans(), label="by value"
        ):
            case.check(damaged(data, case.content))
        elif is_yaml:
            case.check(yaml.dump(altered(data, structured, ODD_IN_YAML)).encode())
        else:
            case.check(json.dumps(altered(data, structured)).encode())

    try_often(attempt)
    case.path.write_bytes(case.content)


def try_lines(case: Case) -> None:
    """As `try_damage` by value, for a file of JSON lines."""
    lines = [json.loads(line) for line in case.content.splitlines()]

    def attempt(data: st.DataObject) -> None:
        changed = [json.dumps(line) for line in altered(data, lines)]
        case.check("".join(f"{line}\n" for line in changed).encode())

    try_often(attempt)
    case.path.write_bytes(case.content)


def try_often(attempt: Callable[[st.DataObject], None]) -> None:
    """Calls `attempt` with `EXAMPLES` sources of choices, which are the same every time."""
    settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(st.data())(attempt))()

"""Losses, logits, draws, checkpoints and corpora are bitwise those recorded in the file beside.

It guards changes that are to change no value: moved files, new names, faster code. Settings are
written out, so that new defaults change nothing here.

    python -m tests.distributed.test_recorded_values --record

records anew. Do so only in a commit that means to change values and whose message says which and
why, or, with no other change, for another version of torch; never to make this test pass.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.recorded_values import (
    BLENDS,
    SEARCHES,
    corpus_hashes,
    draws,
    environment,
    search_values,
)

FILE = Path(__file__).with_name("recorded_values.json")

ELSEWHERE = {"losses": 1e-5, "products": 5e-4, "weights": 1e-3, "logits": 1e-3}
"""Tolerances, relative to the largest value, where `environment` is another than the recorded one.
A difference of two fp32 losses over 2ε magnifies their last bits, and Adam on the logits divides by
the products' own size: other kernels of one processor differ by 7e-8, 8e-5, 8e-5 and 3e-4."""

LAST_BITS = {"weights": 1e-13, "logits": 1e-13}
"""The same in the recorded environment: processors of one kind differ in the last bits of NumPy's
exp and log."""


def numbers(texts: Any) -> Any:
    """What `hexadecimal` was given."""
    return [numbers(text) for text in texts] if isinstance(texts, list) else float.fromhex(texts)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SEARCHES)
def test_searches(recorded: Mapping[str, Any], tmp_path: Path, name: str) -> None:
    expected, found = recorded["searches"][name], search_values(tmp_path, name)
    tolerances = ELSEWHERE
    if environment() == recorded["environment"]:
        exact = found.keys() - LAST_BITS.keys()
        assert {key: found[key] for key in exact} == {key: expected[key] for key in exact}
        tolerances = LAST_BITS
    for key, tolerance in tolerances.items():
        here, there = np.array(numbers(found[key])), np.array(numbers(expected[key]))
        np.testing.assert_allclose(here, there, rtol=0, atol=tolerance * np.abs(there).max())


@pytest.mark.parametrize("name", BLENDS)
def test_draws(recorded: Mapping[str, Any], tmp_path: Path, name: str) -> None:
    assert draws(tmp_path, name) == recorded["draws"][name]


def test_corpora(recorded: Mapping[str, Any], tmp_path: Path) -> None:
    assert corpus_hashes(tmp_path) == recorded["corpora"]


def record() -> None:
    """Writes the file anew."""
    with tempfile.TemporaryDirectory() as root:

        def folder(name: str) -> Path:
            path = Path(root, name)
            path.mkdir()
            return path

        values = {
            "environment": environment(),
            "searches": {name: search_values(folder(name), name) for name in SEARCHES},
            "draws": {name: draws(folder(name), name) for name in BLENDS},
            "corpora": corpus_hashes(folder("corpora")),
        }
    text = json.dumps(values, indent=1)
    # A list without lists in it goes on one line.
    text = re.sub(r"\[[^][{}]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: python -m tests.distributed.test_recorded_values --record")
    record()

"""What the large comparison reads besides the demo's: helpers, near-duplicates and noise."""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable
from pathlib import Path

from megatron_fastmix.lab.demo.answers import chat_rows
from megatron_fastmix.lab.demo.documents import (
    SKIPPED_FOLDERS,
    Documents,
    bible_chapters,
    package_folder,
    python_files,
)

NOISE_DOCUMENTS = 600
NOISE_CHARACTERS = 5000
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 .,;:()[]{}<>=+-*/\n"


def package_code(package: str) -> Callable[[], Documents]:
    """Reads the Python files of an installed package, without its tests."""

    def read() -> Documents:
        root = package_folder(package)
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root.parent)
            if not SKIPPED_FOLDERS.intersection(inside.parts):
                yield str(inside), path.read_text(encoding="utf-8", errors="replace")

    return read


def without_words(read: Callable[[], Documents]) -> Callable[[], Documents]:
    """The same code without comments and docstrings, laid out by rule; what does not parse is left
    out. Of sympy, whose docstrings are a source and a target; of the standard library a source's
    near-duplicate."""

    def bare() -> Documents:
        for name, text in read():
            try:
                tree = ast.parse(text)
            except (SyntaxError, ValueError):
                continue
            for node in ast.walk(tree):
                if isinstance(
                    node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
                ) and ast.get_docstring(node, clean=False):
                    node.body = node.body[1:] or [ast.Pass()]
            try:
                yield name, ast.unparse(tree) + "\n"
            except RecursionError:
                continue

    return bare


def plain_chapters(wheel: Path) -> Documents:
    """The King James Bible in lower case and one paragraph: a near-duplicate of `scripture`."""
    for name, text in bible_chapters(wheel):
        verses = text.splitlines()[2:]
        yield name, " ".join(verses).lower() + "\n"


def conversations(wheel: Path) -> Documents:
    """Short English conversations, a line a turn: the smallest source."""
    for name, row in chat_rows("english")(wheel):
        turns = json.loads(row)["messages"]
        yield name, "\n".join(turn["content"] for turn in turns) + "\n"


def noise() -> Documents:
    """Characters drawn evenly, the same at every call."""
    generator = random.Random(0)
    for number in range(NOISE_DOCUMENTS):
        text = "".join(generator.choices(_ALPHABET, k=NOISE_CHARACTERS))
        yield f"noise {number}", text


LARGE_INSTALLED: dict[str, Callable[[], Documents]] = {
    "torch_code": package_code("torch"),
    "sympy_code": without_words(package_code("sympy")),
    "deepspeed_code": package_code("deepspeed"),
    "matplotlib_code": package_code("matplotlib"),
    "python_bare": without_words(python_files),
    "noise": noise,
}
LARGE_WHEELS: dict[str, Callable[[Path], Documents]] = {
    "scripture_plain": plain_chapters,
    "conversations": conversations,
}

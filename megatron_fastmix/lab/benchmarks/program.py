"""The program around a benchmark: its settings as flags, a table, and the measurements as JSON."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_fastmix.config.require import require
from megatron_fastmix.lab.measurements import Measurement, table, write_measurements


def run_benchmark(
    description: str | None,
    settings_class: Any,
    measure: Callable[[Path, Any, Callable[[str], None]], Sequence[Measurement]],
) -> None:
    """Runs `measure(scratch folder, settings, report)`.

    Every field of the dataclass `settings_class` is a flag, of the type of its default (None:
    text). Prints the measurements as a table and, with `--json FILE`, writes them. Raises
    `ConfigError` for a number that is too small, and what `measure` raises.
    """
    # Where a library crashes, also at the interpreter's end, it says where; on descriptor 2, since
    # what stands for sys.stderr may have none.
    faulthandler.enable(2)
    warnings.simplefilter("ignore")  # Megatron's and DeepSpeed's, of deprecations among themselves
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", metavar="FILE", help="for the table, with machine and versions")
    for key, default in vars(settings_class()).items():
        flag, one = f"--{key.replace('_', '-')}", default
        many: dict[str, Any] = {}
        if isinstance(default, tuple):
            one, many = default[0], {"nargs": "+"}
        kind = str if one is None else type(one)
        parser.add_argument(flag, type=kind, default=default, **many)
    arguments = vars(parser.parse_args())
    file = arguments.pop("json")
    for key, found in arguments.items():
        flag = f"--{key.replace('_', '-')}"
        # Without workers a DataLoader reads in this process.
        least, what = (0, "0 or more") if key == "num_workers" else (1e-300, "a number above 0")
        for each in found if isinstance(found, list | tuple) else [found]:
            require(isinstance(each, str | None) or each >= least, flag, each, f"use {what}")
    settings = settings_class(**arguments)
    with tempfile.TemporaryDirectory() as folder:
        measurements = measure(Path(folder), settings, lambda line: print(line, file=sys.stderr))
    print(table(measurements))
    if file:
        write_measurements(file, measurements, **asdict(settings))

#!/usr/bin/env python
"""Measures our blend beside Megatron-core's BlendedDataset."""

import argparse
import os
import sys
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from megatron_fastmix.lab.benchmarks.blend import Settings, measure
from megatron_fastmix.lab.benchmarks.table import table, write_json
from megatron_fastmix.program import run_program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="file for the rows, with machine and versions")
    for field in fields(Settings):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default)
    args = vars(parser.parse_args())
    json_file = args.pop("json")
    settings = Settings(**args)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), settings, lambda line: print(line, file=sys.stderr))
    print(table(rows))
    if json_file:
        write_json(json_file, rows, **asdict(settings))


if __name__ == "__main__":
    sys.exit(run_program(main, "benchmark_blend"))

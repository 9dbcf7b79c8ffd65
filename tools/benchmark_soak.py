"""Measures whether memory, file handles and threads stay flat over steps, reports and resumes."""

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from megatron_fastmix.program import run_program


def main() -> None:
    from megatron_fastmix.lab.benchmarks import soak
    from megatron_fastmix.lab.benchmarks.program import run_benchmark

    run_benchmark(__doc__, soak.Settings, soak.measure)


if __name__ == "__main__":
    sys.exit(run_program(main, "benchmark_soak"))

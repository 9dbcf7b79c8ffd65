"""Measures what a search costs beside plain DeepSpeed training, on 2 CPU ranks."""

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from megatron_fastmix.program import run_program


def main() -> None:
    from megatron_fastmix.lab.benchmarks import search
    from megatron_fastmix.lab.benchmarks.program import run_benchmark

    run_benchmark(__doc__, search.Settings, search.measure)


if __name__ == "__main__":
    sys.exit(run_program(main, "benchmark_search"))

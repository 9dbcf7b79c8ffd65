"""Measures what a search of 10 to 10,000 sources or of 16,000 shards costs to start and to run."""

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from megatron_fastmix.program import run_program


def main() -> None:
    from megatron_fastmix.lab.benchmarks import scale
    from megatron_fastmix.lab.benchmarks.program import run_benchmark

    run_benchmark(__doc__, scale.Settings, scale.measure)


if __name__ == "__main__":
    sys.exit(run_program(main, "benchmark_scale"))

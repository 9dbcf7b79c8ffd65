"""Measures our blend beside Megatron-core's BlendedDataset."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

from megatron_fastmix.program import run_program


def main() -> None:
    from megatron_fastmix.lab.benchmarks import blend
    from megatron_fastmix.lab.benchmarks.program import run_benchmark

    run_benchmark(__doc__, blend.Settings, blend.measure)


if __name__ == "__main__":
    sys.exit(run_program(main, "benchmark_blend"))

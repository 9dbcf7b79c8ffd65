"""Measures what a search costs beside plain DeepSpeed training, on 2 CPU ranks."""

import os
import sys
import warnings

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> int:
    """Returns the exit code."""
    warnings.simplefilter("ignore")  # Megatron's and DeepSpeed's, of deprecations among themselves
    from megatron_fastmix.lab.benchmarks.search import Settings, measure
    from megatron_fastmix.lab.benchmarks.tool import run_benchmark

    return run_benchmark("benchmark_search", __doc__, Settings, measure)


if __name__ == "__main__":
    sys.exit(main())

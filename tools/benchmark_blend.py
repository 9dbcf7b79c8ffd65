"""Measures our blend beside Megatron-core's BlendedDataset."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

from megatron_fastmix.lab.benchmarks.blend import Settings, measure
from megatron_fastmix.lab.benchmarks.tool import run_benchmark

if __name__ == "__main__":
    sys.exit(run_benchmark("benchmark_blend", __doc__, Settings, measure))

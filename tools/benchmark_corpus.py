"""Measures preprocessing beside the flow of Megatron-LM's preprocess_data.py."""

import sys

from megatron_fastmix.lab.benchmarks.corpus import Settings, measure
from megatron_fastmix.lab.benchmarks.tool import run_benchmark

if __name__ == "__main__":
    sys.exit(run_benchmark("benchmark_corpus", __doc__, Settings, measure))

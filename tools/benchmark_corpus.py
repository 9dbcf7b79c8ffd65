"""Measures preprocessing beside the flow of Megatron-LM's preprocess_data.py."""

import sys

from megatron_fastmix.program import run_program


def main() -> None:
    from megatron_fastmix.lab.benchmarks import corpus
    from megatron_fastmix.lab.benchmarks.program import run_benchmark

    run_benchmark(__doc__, corpus.Settings, corpus.measure)


if __name__ == "__main__":
    sys.exit(run_program(main, "benchmark_corpus"))

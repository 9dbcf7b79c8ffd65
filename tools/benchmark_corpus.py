"""Measures preprocessing beside the flow of Megatron-LM's preprocess_data.py."""

import argparse
import sys
import tempfile
from pathlib import Path

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.lab.benchmarks import corpus as benchmark
from megatron_fastmix.lab.benchmarks.table import table, write_json
from megatron_fastmix.processes import available_cores
from megatron_fastmix.program import run_program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--megabytes", nargs="+", type=float, default=[10, 200], help="sizes (default 10 200)"
    )
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--repetitions", type=int, default=3, help="runs; the median counts")
    parser.add_argument("--tokenizer-type", help="default: BPE with 32,000 pieces, trained here")
    parser.add_argument("--tokenizer-model")
    parser.add_argument("--folder", help="keeps text and tokenizer (default: a temporary folder)")
    parser.add_argument("--json", help="file for the rows, with machine and versions")
    args = parser.parse_args()
    tokenizer = args.tokenizer_type and TokenizerConfig(
        tokenizer_type=args.tokenizer_type, tokenizer_model=args.tokenizer_model
    )
    with tempfile.TemporaryDirectory() as scratch:
        comparisons = benchmark.compare(
            args.megabytes,
            folder=Path(args.folder or scratch),
            tokenizer=tokenizer,
            workers=args.workers,
            repetitions=args.repetitions,
            report=lambda line: print(line, file=sys.stderr),
        )
    rows = benchmark.rows(comparisons)
    print(table(rows))
    if args.json:
        write_json(args.json, rows, workers=args.workers, repetitions=args.repetitions)


if __name__ == "__main__":
    sys.exit(run_program(main, "benchmark_corpus"))

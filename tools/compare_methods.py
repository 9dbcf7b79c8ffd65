"""Finds mixtures by every method, trains target models on them and compares cost and loss.

`megatron-fastmix compare-methods` with the rows that lie beside this file.
"""

import sys
from pathlib import Path

from megatron_fastmix.cli.main import main

ROWS = Path(__file__).with_name("method_rows")

if __name__ == "__main__":
    words = sys.argv[1:]
    if not any(word.partition("=")[0] == "--output" for word in words):
        words += ["--output", str(ROWS)]
    sys.exit(main(["compare-methods", *words]))

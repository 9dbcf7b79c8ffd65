"""The progress of preprocessing: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

PLAIN_SECONDS = 10.0
"""Time between two lines where there is no terminal."""


class Progress:
    """Megabytes of input done of `total`, with MB/s and tokens/s of this run; a context manager."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, max(total, 1)
        self._bytes = self._skipped = self._tokens = 0
        self._start = self._last = time.perf_counter()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=name, unit="B", unit_scale=True, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def skip(self, input_bytes: int) -> None:
        """Counts a chunk that an earlier run has done."""
        self._bytes += input_bytes
        self._skipped += input_bytes
        if self._bar is not None:
            self._bar.update(input_bytes)

    def advance(self, input_bytes: int, tokens: int) -> None:
        """Counts one chunk."""
        self._bytes += input_bytes
        self._tokens += tokens
        now = time.perf_counter()
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._tokens / (now - self._start):,.0f} tokens/s", False)
            self._bar.update(input_bytes)
        elif now - self._last >= PLAIN_SECONDS:
            self._last = now
            share = min(1.0, self._bytes / self._total)
            print(f"{self._name}: {share:.0%}, {self.rates}", file=sys.stderr, flush=True)

    @property
    def rates(self) -> str:
        """Speed of this run so far."""
        seconds = time.perf_counter() - self._start
        megabytes = (self._bytes - self._skipped) / 1e6
        return f"{megabytes / seconds:.1f} MB/s, {self._tokens / seconds:,.0f} tokens/s"

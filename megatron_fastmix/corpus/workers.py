"""Worker processes that map a function over chunks in order, with few chunks in memory."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from megatron_fastmix.corpus.reading.readers import Chunk
from megatron_fastmix.errors import DataError
from megatron_fastmix.processes import stop_with_parent

Result = TypeVar("Result")

_work: Callable[[Chunk], Any] | None = None
_M_MMAP_THRESHOLD = -3  # of mallopt(3)


def map_chunks(
    work: Callable[[Chunk], Result], chunks: Iterable[Chunk], workers: int
) -> Iterator[Result]:
    """`work(chunk)` for each chunk, in order; one worker means this process.

    At most two chunks per worker are under way beyond the one that is consumed. Raises
    `DataError` where a worker process is killed.
    """
    if workers == 1:
        yield from map(work, chunks)
        return
    # Forked, so that the tokenizer is inherited and not sent along with every chunk.
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _start_worker, (work, os.getpid())
    )
    window: deque[Future[Result]] = deque()
    try:
        for chunk in chunks:
            window.append(executor.submit(_run, chunk))
            if len(window) > 2 * workers:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process died, most likely killed for memory; run again with fewer --workers, "
            "it continues where it stopped"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker(work: Callable[[Chunk], Any], parent: int) -> None:
    global _work
    _work = work
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        # Else a first long document makes the C library keep as much memory for good.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 17)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    stop_with_parent(parent)  # the executor would leave it waiting


def _run(chunk: Chunk) -> Any:
    assert _work is not None
    return _work(chunk)

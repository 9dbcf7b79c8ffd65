"""Jobs in parallel: one process each, forked from a server that has imported Megatron once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from megatron_fastmix.errors import ConfigError, FastMixError, OutOfMemoryError, StorageError
from megatron_fastmix.processes import available_cores, stop_with_parent
from megatron_fastmix.start.accelerators import visible_accelerators
from megatron_fastmix.start.limits import raise_open_files
from megatron_fastmix.storage import describe, is_storage_error

_LESS_MEMORY = "run again with fewer --workers or a smaller training.micro_batch_size"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A call that leaves its result in files."""

    name: str
    function: Callable[..., None]
    """Called as `function(*arguments)` in a process of its own, which ends with its parent."""
    arguments: tuple[Any, ...]


def worker_count(asked: int | None) -> int:
    """The value of `--workers`: by default one per core, or 1 on an accelerator.

    Raises `ConfigError`.
    """
    if asked is None:
        return 1 if visible_accelerators() else available_cores()
    if asked < 1:
        raise ConfigError(f"--workers: found {asked}; use at least 1")
    return asked


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    preload: Sequence[str] = (),
    finished: Callable[[Job], None] = lambda job: None,
) -> None:
    """Runs `jobs` in their order, `workers` at once, which share the cores, or have as many threads
    each as OMP_NUM_THREADS says, on a machine that others use too.

    `preload` are modules that the jobs need, imported once by the first call of a program.
    `finished` is called after each job. An exception in a job, or in here (such as
    KeyboardInterrupt), ends the jobs in hand and is raised.
    """
    raise_open_files()  # a source of many datasets has more than the usual limit
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    threads = _threads(workers)
    waiting = list(jobs)
    running: dict[Connection, tuple[Any, Job]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(job, threads, sender))
                process.daemon = True
                process.start()
                sender.close()
                running[receiver] = (process, job)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, job = running.pop(ready)
                _check(ready, process, job)
                finished(job)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _threads(workers: int) -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    shared = max(1, available_cores() // workers)
    return min(shared, int(asked)) if asked.isdecimal() and int(asked) else shared


def _check(receiver: Connection, process: Any, job: Job) -> None:
    """Raises what a job that has ended raised."""
    try:
        error = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:
            raise OutOfMemoryError(
                f"{job.name}: its process was killed, most likely for memory; {_LESS_MEMORY}"
            ) from None
        raise RuntimeError(f"{job.name}: its process died, exit code {process.exitcode}") from None
    process.join()
    if isinstance(error, FastMixError):
        raise error
    if error is not None:
        raise RuntimeError(f"{job.name}:\n{error}")


def _run(job: Job, threads: int, sender: Connection) -> None:
    # A terminal's Ctrl-C reaches every process of the group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_with_parent()  # the server, which ends with the program
    import torch

    torch.set_num_threads(threads)
    error: FastMixError | str | None = None
    try:
        job.function(*job.arguments)
    except FastMixError as found:
        error = found
    except Exception as found:
        error = _named(job, found) or traceback.format_exc()
    sender.send(error)


def _named(job: Job, error: Exception) -> FastMixError | None:
    """The error of ours for want of memory or a file system that failed; None for any other."""
    from megatron_fastmix.start.worker import is_out_of_memory

    if is_out_of_memory(error):
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        return OutOfMemoryError(f"{job.name}: out of memory: {first}; {_LESS_MEMORY}")
    if isinstance(error, OSError) and is_storage_error(error):
        return StorageError(f"{job.name}: {describe(error)} and run the same command again")
    return None

"""Jobs in parallel: one process each, forked from a server that has imported Megatron once."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from megatron_fastmix.errors import FastMixError

Wanted = Callable[[], bool]
"""Says whether somebody still waits for a job."""


class Abandoned(Exception):
    """Nobody waits for the job any more."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A call that leaves its result in files."""

    name: str
    function: Callable[..., None]
    """Called as `function(*arguments, wanted)` in a process of its own; it asks between steps
    whether it is still `wanted`, and raises `Abandoned` if not."""
    arguments: tuple[Any, ...]


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int = 1,
    preload: Sequence[str] = (),
    finished: Callable[[Job], None] = lambda job: None,
) -> None:
    """Runs `jobs` in their order, `workers` at once, each with `threads` threads.

    `preload` are modules that the jobs need, imported once by the first call of a program.
    `finished` is called after each job. An exception in a job, or in here (such as
    KeyboardInterrupt), ends the jobs in hand and is raised.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
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


def _check(receiver: Connection, process: Any, job: Job) -> None:
    """Raises what a job that has ended raised."""
    try:
        error = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{job.name}: its process died, exit code {process.exitcode}") from None
    process.join()
    if isinstance(error, FastMixError):
        raise error
    if error is not None:
        raise RuntimeError(f"{job.name}:\n{error}")


def _run(job: Job, threads: int, sender: Connection) -> None:
    # A terminal's Ctrl-C reaches every process of the group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None
    error: FastMixError | str | None = None
    try:
        job.function(*job.arguments, parent.is_alive)
    except Abandoned:
        sys.exit(1)
    except FastMixError as found:
        error = found
    except Exception:
        error = traceback.format_exc()
    sender.send(error)

"""Rows in parallel: one process each, forked from a server that has imported Megatron once."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from megatron_fastmix.errors import FastMixError
from megatron_fastmix.evidence.config import Setting
from megatron_fastmix.evidence.rows import Task, write_row

ROW_TRAINING = "megatron_fastmix.evidence.row_training"


def train_rows(
    setting: Setting,
    tasks: Sequence[Task],
    folder: Path,
    *,
    workers: int,
    threads: int = 1,
    finished: Callable[[Task], None] = lambda task: None,
) -> None:
    """Trains `tasks` with `workers` processes of `threads` threads; each writes its row itself.

    `finished` is called after each row. An exception in a row, or in here (such as
    KeyboardInterrupt), ends the rows in hand and is raised; finished rows stay.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([ROW_TRAINING])
    waiting = list(tasks)
    running: dict[Connection, tuple[Any, Task]] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".cache-") as caches:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    task = waiting.pop(0)
                    cache = Path(caches, task.file_name)
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(
                        target=_row, args=(setting, task, folder, cache, threads, sender)
                    )
                    process.daemon = True
                    process.start()
                    sender.close()
                    running[receiver] = (process, task)
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    process, task = running.pop(ready)
                    _check(ready, process, task)
                    finished(task)
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.join()


def _check(receiver: Connection, process: Any, task: Task) -> None:
    """Raises what a row that has ended raised."""
    what = f"row {task.candidate.name}, seed {task.seed}"
    try:
        error = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{what}: its process died, exit code {process.exitcode}") from None
    process.join()
    if isinstance(error, FastMixError):
        raise error
    if error is not None:
        raise RuntimeError(f"{what}:\n{error}")


def _row(
    setting: Setting, task: Task, folder: Path, cache: Path, threads: int, sender: Connection
) -> None:
    # A terminal's Ctrl-C reaches every process of the group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from megatron_fastmix.evidence.row_training import Abandoned, train_row

    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None
    error: FastMixError | str | None = None
    try:
        cache.mkdir()
        write_row(folder, task, train_row(setting, task, cache, parent.is_alive))
    except Abandoned:
        sys.exit(1)
    except FastMixError as found:
        error = found
    except Exception:
        error = traceback.format_exc()
    sender.send(error)

"""Rows in parallel, each written by the process that trained it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_fastmix.lab.comparison.config import Setting
from megatron_fastmix.lab.comparison.rows import Task, write_row
from megatron_fastmix.lab.jobs import Job, run_jobs

ROW_TRAINING = "megatron_fastmix.lab.comparison.row_training"


def train_rows(
    setting: Setting,
    tasks: Sequence[Task],
    folder: Path,
    *,
    workers: int,
    finished: Callable[[Task], None] = lambda task: None,
) -> None:
    """Trains `tasks` with `workers` processes; finished rows stay.

    `finished` is called after each row. Raises what `run_jobs` raises.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".cache-") as caches:
        jobs = [
            Job(
                name=f"row {task.candidate.name}, seed {task.seed}",
                function=_row,
                arguments=(setting, task, folder, Path(caches, task.file_name)),
            )
            for task in tasks
        ]
        run_jobs(
            jobs,
            workers=workers,
            preload=[ROW_TRAINING],
            finished=lambda job: finished(job.arguments[1]),
        )


def _row(setting: Setting, task: Task, folder: Path, cache: Path) -> None:
    from megatron_fastmix.lab.comparison.row_training import train_row

    cache.mkdir()
    write_row(folder, task, train_row(setting, task, cache))

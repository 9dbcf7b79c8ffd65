"""Rows in parallel, each appended by the process that trained it."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_fastmix.lab.comparison.config import Setting
from megatron_fastmix.lab.comparison.rows import Row, RowFile, Task
from megatron_fastmix.lab.jobs import Job, run_jobs

ROW_TRAINING = "megatron_fastmix.lab.comparison.row_training"


def train_rows(
    setting: Setting, tasks: Sequence[Task], file: RowFile, *, workers: int, keep_samples: bool
) -> dict[str, Row]:
    """Trains those of `tasks` that `file` lacks, with `workers` processes, and returns all by key.

    Prints a line for each. `keep_samples` keeps the losses of single samples. `file` must have
    been claimed for `setting`. Raises what `run_jobs` raises; finished rows stay.
    """
    there = file.read().of(tasks)
    missing = [task for task in tasks if task.key not in there]
    print(f"{file.path}: {len(there)} of {len(tasks)} rows are finished", flush=True)
    began, done = time.monotonic(), 0

    def finished(job: Job) -> None:
        nonlocal done
        done += 1
        task = job.arguments[1]
        row = file.read().trainings[task.key]
        left = (time.monotonic() - began) / done * (len(missing) - done)
        print(
            f"[{len(there) + done}/{len(tasks)}] {task.candidate.name}, seed {task.seed}: "
            f"loss {row.loss:.4f} in {row.wall_seconds:.0f} s, about {left / 60:.0f} min left",
            flush=True,
        )

    with tempfile.TemporaryDirectory(dir=file.path.parent, prefix=".cache-") as caches:
        jobs = [
            Job(
                name=f"row {task.candidate.name}, seed {task.seed}",
                function=_row,
                arguments=(setting, task, file, keep_samples, Path(caches, task.key)),
            )
            for task in missing
        ]
        run_jobs(jobs, workers=workers, preload=[ROW_TRAINING], finished=finished)
    return file.read().of(tasks)


def _row(setting: Setting, task: Task, file: RowFile, keep_samples: bool, cache: Path) -> None:
    from megatron_fastmix.lab.comparison.row_training import train_row

    cache.mkdir()
    row = train_row(setting, task, cache)
    file.add(row if keep_samples else dataclasses.replace(row, sample_losses={}))

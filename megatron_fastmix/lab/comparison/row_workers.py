"""Rows in parallel, each appended by the process that trained it."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_fastmix.lab.comparison.config import Setting
from megatron_fastmix.lab.comparison.rows import Row, RowFile, Task
from megatron_fastmix.lab.jobs import Job, run_jobs

ROW_TRAINING = "megatron_fastmix.lab.comparison.row_training"
SAVE_INTERVAL = 200
"""Steps of a target model between two checkpoints: a minute or so of one core at this size."""


def train_rows(
    setting: Setting,
    tasks: Sequence[Task],
    file: RowFile,
    *,
    workers: int,
    keep_samples: bool,
    checkpoints: Path,
    save_interval: int = SAVE_INTERVAL,
) -> dict[str, Row]:
    """Trains those of `tasks` that `file` lacks, with `workers` processes, and returns all by key.

    Prints a line for each. `keep_samples` keeps the losses of single samples. `file` must have
    been claimed for `setting`. A training that was stopped goes on from its file in `checkpoints`,
    written every `save_interval` steps. Raises what `run_jobs` raises; finished rows stay.
    """
    there = file.read().of(tasks)
    # Mixtures that agree to the last written place are one.
    missing = list({task.key: task for task in tasks if task.key not in there}.values())
    whole = len(there) + len(missing)
    print(f"{file.path}: {len(there)} of {whole} rows are finished", flush=True)
    began, done = time.monotonic(), 0

    def finished(job: Job) -> None:
        nonlocal done
        done += 1
        task = job.arguments[1]
        row = file.read().trainings[task.key]
        left = (time.monotonic() - began) / done * (len(missing) - done)
        print(
            f"[{len(there) + done}/{whole}] {task.candidate.name}, seed {task.seed}: "
            f"loss {row.loss:.4f} in {row.wall_seconds:.0f} s, about {left / 60:.0f} min left",
            flush=True,
        )

    with tempfile.TemporaryDirectory(dir=file.path.parent, prefix=".cache-") as caches:
        jobs = [
            Job(
                name=f"row {task.candidate.name}, seed {task.seed}",
                function=_row,
                arguments=(
                    setting,
                    task,
                    file,
                    keep_samples,
                    Path(caches, task.key),
                    checkpoints / f"{setting.digest}-{task.key}.pt",
                    save_interval,
                ),
            )
            for task in missing
        ]
        run_jobs(jobs, workers=workers, preload=[ROW_TRAINING], finished=finished)
    with contextlib.suppress(OSError):  # there are others' checkpoints in it, or none was written
        checkpoints.rmdir()
    return file.read().of(tasks)


def _row(
    setting: Setting,
    task: Task,
    file: RowFile,
    keep_samples: bool,
    cache: Path,
    checkpoint: Path,
    save_interval: int,
) -> None:
    from megatron_fastmix.lab.comparison.row_checkpoint import RowCheckpoint
    from megatron_fastmix.lab.comparison.row_training import train_row

    cache.mkdir()
    saved = RowCheckpoint(checkpoint, save_interval)
    row = train_row(setting, task, cache, saved)
    without = dataclasses.replace(row, sample_losses={}, sample_sizes={})
    file.add(row if keep_samples else without)
    saved.remove()

"""What the launcher told this rank. Free of torch, whose import takes seconds."""

from __future__ import annotations

import os

_told: int | None = None


def local_rank() -> int:
    """This rank among those of its host; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _told is None else _told


def number_device(index: int) -> None:
    """Has LOCAL_RANK be the number of this rank's accelerator among those that it sees, which
    DeepSpeed takes it for: where SLURM shows each task one, that is 0. `local_rank` stays."""
    global _told
    _told = local_rank()
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):  # DeepSpeed wants them equal
        if name in os.environ:
            os.environ[name] = str(index)

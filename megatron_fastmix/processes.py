"""What this process may use, and when it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What asks a search for a checkpoint and an orderly end: Ctrl-C, and what schedulers send before
the time is up (SLURM's `--signal`), each as its users have set it."""
_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl(2)."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def stop_with_parent(parent: int | None = None) -> None:
    """Has the kernel send SIGTERM to this process when its parent dies, even by `kill -9`, so that
    nothing works on unseen. Only Linux can.

    `parent` is its process id, where it is known: one that has died already ends this process.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)

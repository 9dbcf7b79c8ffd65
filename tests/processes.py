"""Waiting for other processes to end."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil


def wait_until_gone(processes: Sequence[psutil.Process], seconds: float = 60) -> None:
    """A zombie is gone: it stays where the first process of a container reaps no orphans."""
    deadline = time.monotonic() + seconds
    while alive := [process for process in processes if _is_alive(process)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

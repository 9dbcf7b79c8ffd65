"""One search at a time in a run folder: `RUN/lock` is locked while it lives.

The program that starts the ranks takes the lock before their imports begin, and shares it with rank
0 through a token in the environment: both hold it until the later one ends. Where ranks are started
by others, rank 0 takes it.

The kernel releases a `flock` with its process, however that dies, so a lock left by a run of this
host is never stale. Some network file systems keep the locks of different hosts apart, or have
none: there the holder also touches the file every few seconds, and whoever comes waits to see
whether it moves.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.run.folder import RunFolder

HEARTBEAT_SECONDS = 5.0
TOKEN_VARIABLE = "MEGATRON_FASTMIX_LOCK"
"""In the environment of ranks whose starter holds the lock: what it wrote into the file."""


class RunLock:
    """Held from `acquire` to `release` or the end of the process."""

    def __init__(self, folder: RunFolder, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self.path = folder.lock
        self.heartbeat_seconds = heartbeat_seconds
        self._descriptor: int | None = None
        self._released = threading.Event()
        self._token = os.environ.get(TOKEN_VARIABLE) or uuid.uuid4().hex

    @property
    def environment(self) -> dict[str, str]:
        """Variables that let a rank share this lock."""
        return {TOKEN_VARIABLE: self._token}

    def acquire(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Takes the lock, or shares that of the program that started this one. Waits three
        heartbeats where locks of the holder cannot be seen, and tells `note` so.

        Raises `ConfigError` that names the host and process of the run that holds it.
        """
        self._descriptor, seen = self._open()
        holder = _read(self._descriptor)
        shared = holder.get("token") == self._token
        if holder and not shared and not (seen and holder.get("host") == socket.gethostname()):
            self._watch(holder, note)
        content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.time(),
            "token": self._token,
        }
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(content).encode(), 0)
        if seen:
            # Shared from now on, with rank 0 alone: whoever lacks the token wants it exclusively.
            self._flock(self._descriptor, fcntl.LOCK_SH)
        threading.Thread(target=self._beat, args=(self._descriptor,), daemon=True).start()

    def release(self) -> None:
        """Gives the lock back; the file stays, empty, as removing it would race with others."""
        if self._descriptor is not None:
            self._released.set()
            # While another program shares it, its holder stays known.
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(self._descriptor, 0)
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def check_free(self) -> None:
        """Raises what `acquire` raises where a run of this host, or of one whose locks are seen
        here, holds the lock."""
        if self.path.exists():
            os.close(self._open()[0])

    def _open(self) -> tuple[int, bool]:
        """The locked file, and whether the file system has locks."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"run_dir: cannot write to {self.path.parent}: {error.strerror}"
            ) from None
        shared = _read(descriptor).get("token") == self._token
        return descriptor, self._flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)

    def _flock(self, descriptor: int, kind: int) -> bool:
        """Whether the file system has locks; raises `ConfigError` where another run holds it."""
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(descriptor)
            os.close(descriptor)
            raise ConfigError(_refusal(self.path.parent, holder)) from None
        except OSError:
            return False  # the heartbeat alone protects the folder
        return True

    def _watch(self, holder: dict[str, Any], note: Callable[[str], None]) -> None:
        assert self._descriptor is not None
        note(
            f"{self.path}: left by process {holder.get('pid')} on {holder.get('host')}; waiting "
            f"{3 * self.heartbeat_seconds:.0f} s to see whether it lives"
        )
        before = os.stat(self.path).st_mtime_ns
        deadline = time.monotonic() + 3 * self.heartbeat_seconds
        while time.monotonic() < deadline:
            time.sleep(self.heartbeat_seconds / 5)
            if os.stat(self.path).st_mtime_ns != before:
                os.close(self._descriptor)
                self._descriptor = None
                raise ConfigError(_refusal(self.path.parent, holder))

    def _beat(self, descriptor: int) -> None:
        while not self._released.wait(self.heartbeat_seconds):
            with contextlib.suppress(OSError):
                os.utime(descriptor)


def _read(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    host, process = holder.get("host", "an unknown host"), holder.get("pid", "?")
    return (
        f"{folder}: a search is running here, process {process} on {host}; wait for it, stop it "
        f"(touch {shlex.quote(str(folder))}/stop), or choose another run_dir"
    )

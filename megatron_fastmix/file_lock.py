"""A file that one program at a time holds, told apart from what a dead one left.

The kernel releases a `flock` with its process, however that dies, so a lock left by a program of
this host is never stale. Some network file systems keep the locks of different hosts apart, or have
none: there the holder also touches the file every few seconds, and whoever comes waits to see
whether it moves.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_fastmix.errors import ConfigError

HEARTBEAT_SECONDS = 5.0


class FileLock(ABC):
    """Held from `acquire` to `release` or the end of the process."""

    def __init__(
        self,
        path: str | Path,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        *,
        token: str | None = None,
        stays: bool = True,
    ) -> None:
        """Programs with the same `token` share the lock. `stays`: whether the file stays, empty,
        after the release."""
        self.path = Path(path)
        self.heartbeat_seconds = heartbeat_seconds
        self._descriptor: int | None = None
        self._heart: threading.Thread | None = None
        self._released = threading.Event()
        self._shareable = token is not None
        self._token = token or uuid.uuid4().hex
        self._stays = stays

    @abstractmethod
    def _refusal(self, holder: str) -> str:
        """What to tell where `holder`, such as `process 7 on node-1`, has the lock."""

    @abstractmethod
    def _unwritable(self, error: OSError) -> Exception:
        """The error where the file cannot be opened."""

    def acquire(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Takes the lock, or shares that of the program that started this one. Waits three
        heartbeats where locks of the holder cannot be seen, and tells `note` so.

        Raises `ConfigError` that names the host and process of the program that holds it.
        """
        self._descriptor, seen = self._open()
        holder = _read(self._descriptor)
        shared = holder.get("token") == self._token
        is_known = shared or (seen and holder.get("host") == socket.gethostname())
        if holder and not is_known and not self._watch(holder, note):
            os.close(self._descriptor)
            self.acquire(note)
            return
        content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.time(),
            "token": self._token,
        }
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(content).encode(), 0)
        except OSError:
            self.release()  # or this program would refuse itself when it tries again
            raise
        if seen and self._shareable:
            # Shared from now on: whoever lacks the token wants it exclusively.
            self._flock(self._descriptor, fcntl.LOCK_SH)
        self._heart = threading.Thread(target=self._beat, args=(self._descriptor,), daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Gives the lock back."""
        if self._descriptor is not None:
            self._released.set()
            if self._heart is not None:
                self._heart.join()  # it must not touch what gets the descriptor's number next
            if not self._stays:  # while it is held; `_open` finds out that its file is gone
                with contextlib.suppress(OSError):
                    self.path.unlink()
            else:
                # While another program shares it, its holder stays known.
                with contextlib.suppress(OSError):
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.ftruncate(self._descriptor, 0)
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def check_free(self) -> None:
        """Raises what `acquire` raises where a program of this host, or of one whose locks are seen
        here, holds the lock."""
        if self.path.exists():
            os.close(self._open()[0])

    def _open(self) -> tuple[int, bool]:
        """The locked file, and whether the file system has locks."""
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise self._unwritable(error) from None
            shared = self._shareable and _read(descriptor).get("token") == self._token
            seen = self._flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if self._is_the_file(descriptor):
                return descriptor, seen
            os.close(descriptor)  # its holder removed it in the meantime

    def _is_the_file(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except OSError:
            return False

    def _flock(self, descriptor: int, kind: int) -> bool:
        """Whether the file system has locks. Raises `ConfigError` where another program has it."""
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(descriptor)
            os.close(descriptor)
            raise ConfigError(self._refusal(_named(holder))) from None
        except OSError:
            return False  # the heartbeat alone protects what it guards
        return True

    def _watch(self, holder: dict[str, Any], note: Callable[[str], None]) -> bool:
        """Whether the file is there still once the holder did not touch it for long."""
        assert self._descriptor is not None
        note(
            f"{self.path}: left by {_named(holder)}; waiting "
            f"{3 * self.heartbeat_seconds:.0f} s to see whether it lives"
        )
        before = os.fstat(self._descriptor).st_mtime_ns
        deadline = time.monotonic() + 3 * self.heartbeat_seconds
        while time.monotonic() < deadline:
            time.sleep(self.heartbeat_seconds / 5)
            if not self._is_the_file(self._descriptor):
                return False
            if os.stat(self.path).st_mtime_ns != before:
                os.close(self._descriptor)
                self._descriptor = None
                raise ConfigError(self._refusal(_named(holder)))
        return True

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


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"

"""One writer at a time of a dataset: `PREFIX.preprocess.lock` is locked as its files are made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from megatron_fastmix.errors import ConfigError, FastMixError, StorageError
from megatron_fastmix.file_lock import HEARTBEAT_SECONDS, FileLock
from megatron_fastmix.storage import is_storage_error, reason_of

LOCK_END = ".preprocess.lock"


class OutputLock(FileLock):
    """Of the files of one prefix; nothing of it stays after the release."""

    def __init__(self, prefix: str, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        super().__init__(f"{prefix}{LOCK_END}", heartbeat_seconds, stays=False)
        self._prefix = prefix

    def _unwritable(self, error: OSError) -> FastMixError:
        kind = StorageError if is_storage_error(error) else ConfigError
        return kind(
            f"{self.path}: cannot write: {reason_of(error)}; mend that and run again, or choose "
            "another output prefix"
        )

    def _refusal(self, holder: str) -> str:
        return (
            f"{self._prefix}: another preprocess is writing this dataset, {holder}; wait for it or "
            "stop it, or choose another output prefix"
        )


@contextlib.contextmanager
def locked_outputs(prefixes: Iterable[str], note: Callable[[str], None]) -> Iterator[None]:
    """Holds the locks of all prefixes, so that no other program writes their files.

    Raises `ConfigError` that names the host and process of one that does.
    """
    with contextlib.ExitStack() as held:
        for prefix in prefixes:
            lock = OutputLock(prefix)
            lock.acquire(note)
            held.callback(lock.release)
        yield

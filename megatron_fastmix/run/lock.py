"""One search at a time in a run folder: `RUN/lock` is locked while it lives.

The program that starts the ranks takes the lock before their imports begin, and shares it with rank
0 through a token in the environment: both hold it until the later one ends. Where ranks are started
by others, rank 0 takes it.
"""

from __future__ import annotations

import os
import shlex
import uuid

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.file_lock import HEARTBEAT_SECONDS, FileLock
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.storage import reason_of

TOKEN_VARIABLE = "MEGATRON_FASTMIX_LOCK"
"""In the environment of ranks whose starter holds the lock: what it wrote into the file."""


class RunLock(FileLock):
    """The file stays after the release, as a rank may share it still."""

    def __init__(self, folder: RunFolder, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        token = os.environ.get(TOKEN_VARIABLE) or uuid.uuid4().hex
        super().__init__(folder.lock, heartbeat_seconds, token=token)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that let a rank share this lock."""
        return {TOKEN_VARIABLE: self._token}

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"run_dir: cannot write to {self.path.parent}: {reason_of(error)}; mend that, or "
            "choose another run_dir"
        )

    def _refusal(self, holder: str) -> str:
        folder = self.path.parent
        return (
            f"{folder}: a search is running here, {holder}; wait for it, stop "
            f"it (touch {shlex.quote(str(folder))}/stop), or choose another run_dir"
        )

"""Errors that users meet.

Every message says what is wrong, where, the value found and how to fix it. The command line
prints the message alone (no traceback) and exits with the class's `exit_code`.
"""


class FastMixError(Exception):
    """Base of every error that is somebody's to fix; never raised itself."""

    exit_code = 1

    def __init__(self, message: str, *, is_echo: bool = False) -> None:
        """`is_echo` where another rank knows more and says it."""
        super().__init__(message)
        self.is_echo = is_echo


class ConfigError(FastMixError):
    """A configuration, flag or environment that cannot work; found before any rank trains."""

    exit_code = 2


class DataError(FastMixError):
    """An input file that is missing, empty, truncated, malformed or does not belong."""

    exit_code = 2


class NonFiniteError(FastMixError):
    """A loss or an inner product became NaN or Inf; names the step and the source."""

    exit_code = 3


class RankDivergenceError(FastMixError):
    """Ranks that must hold equal mixture logits do not; names the ranks and the difference."""

    exit_code = 4


class CheckpointError(FastMixError):
    """A checkpoint that cannot be read or belongs to another run; says what differs."""

    exit_code = 5


class StorageError(FastMixError):
    """The file system failed or is full; names the path and says how to go on."""

    exit_code = 5


class OutOfMemoryError(FastMixError):
    """A rank's accelerator or host has no memory left; names the keys that help."""

    exit_code = 8


class CommunicationError(FastMixError):
    """A collective that failed or timed out: another rank, or the link to it, is gone."""

    exit_code = 6

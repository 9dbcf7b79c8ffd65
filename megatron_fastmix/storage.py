"""Errors of the file system: which ones are its own, and how they are told."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from megatron_fastmix.errors import StorageError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Room is missing: on the disk, in the quota, in the largest file."""
BROKEN = {
    *(errno.EIO, errno.ESTALE, errno.EROFS, errno.EUCLEAN, errno.ENXIO, errno.ENODEV),
    *(errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO, errno.ENOMEDIUM, errno.ENOLCK),
}
"""The disk, its server or the way there failed, or it was mounted read-only."""


def is_storage_error(error: OSError) -> bool:
    """Whether the file system failed, rather than that a path is wrong or a connection broke."""
    if error.errno in FULL | BROKEN - {errno.ENOTCONN, errno.EHOSTDOWN}:
        return True
    return error.filename is not None and error.errno in {*BROKEN, errno.ETIMEDOUT}


def reason_of(error: OSError) -> str:
    """Why a path cannot be used, in words that hold for a file in the place of a folder, too."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a part of that path is a file, not a folder"
    return error.strerror or str(error) or type(error).__name__


def describe(error: OSError, path: str | Path | None = None) -> str:
    """The path (`path` where the error names none), the reason and what to do."""
    where = error.filename if error.filename is not None else path
    reason = reason_of(error)
    fix = "free some space" if error.errno in FULL else "mend the file system"
    if not is_storage_error(error):
        fix = "mend that"
    return f"{'' if where is None else f'{_text(where)}: '}{reason}; {fix}"


@contextlib.contextmanager
def storage_errors(path: str | Path, then: str) -> Iterator[None]:
    """Turns every `OSError` inside into a `StorageError` about `path`, where it names no other.

    `then` is what the message ends with: what to do once the reason is gone.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{describe(error, path)} and {then}") from None


def os_error_of(error: BaseException) -> OSError | None:
    """The `OSError` that `error` is or arose from; zipfile hides those of its file behind its
    own."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError):
            return found
        found = found.__cause__ or found.__context__
    return None


def _text(path: object) -> str:
    return path.decode(errors="replace") if isinstance(path, bytes) else str(path)

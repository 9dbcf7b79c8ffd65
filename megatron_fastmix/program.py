"""How every command ends: with a message instead of a traceback, and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from megatron_fastmix.errors import DataError, FastMixError, StorageError
from megatron_fastmix.storage import describe, is_storage_error


def printable(text: str) -> str:
    """`text` as UTF-8 can say it: of names that are no Unicode, as those of old file systems, the
    bytes as question marks."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def give_up_output() -> None:
    """Sends what is printed from now on nowhere. What is left in the buffer would fail again, at
    the latest when the interpreter flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_program(run: Callable[[], int | None], name: str) -> int:
    """The exit code of `run()`: its own, that of a `FastMixError`, whose message is printed after
    `name`, 130 after Ctrl-C, 141 where nobody reads the output any longer."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that its encoding does not have
    try:
        code = run() or 0
        sys.stdout.flush()
    except FastMixError as error:
        print(f"{name}: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        give_up_output()
        return 141
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        # Of a file: what is left is about connections, and a traceback helps more.
        if error.filename is None and not is_storage_error(error):
            raise
        print(
            f"{name}: {printable(describe(error))} and run the same command again", file=sys.stderr
        )
        return StorageError.exit_code if is_storage_error(error) else DataError.exit_code
    return code

"""How every command ends: with a message instead of a traceback, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from megatron_fastmix.errors import FastMixError


def run_program(run: Callable[[], int | None], name: str) -> int:
    """The exit code of `run()`: its own, that of a `FastMixError`, whose message is printed after
    `name`, 130 after Ctrl-C, 141 where nobody reads the output any longer."""
    try:
        code = run() or 0
        sys.stdout.flush()
    except FastMixError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # What is left in the buffer would fail again when the interpreter flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    return code

"""Runs a script or module as Python would, in this process."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

from megatron_fastmix.errors import ConfigError


def enter(command: Sequence[str]) -> None:
    """Makes `sys.argv` and `sys.path` what `python COMMAND` would find.

    To be called before anything of `megatron` is imported: a checkout of Megatron-LM beside the
    script holds packages of that name. Raises `ConfigError` for a script that is not there.
    """
    if command[0] == "-m":
        sys.argv = list(command[1:])
        return
    script = command[0]
    if not os.path.isfile(script):
        raise ConfigError(f"{script}: no such script; give a script, or -m MODULE")
    sys.argv = list(command)
    folder = os.path.dirname(os.path.abspath(script))
    # `-m megatron_fastmix.megatron` has put the working directory first, and this package may
    # have been found there.
    sys.path[:] = [folder, *(path for path in sys.path if path != folder)]


def execute(command: Sequence[str]) -> None:
    """Runs what `enter` has prepared, as `__main__`."""
    if command[0] == "-m":
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(command[0], run_name="__main__")

"""Where the console command begins: the imports of all verbs take seconds, in which Ctrl-C may
come."""

from __future__ import annotations

from megatron_fastmix.program import run_program


def main() -> int:
    """Runs the command; returns its exit code, as `run_program`."""
    return run_program(_command, "megatron-fastmix")


def _command() -> int:
    from megatron_fastmix.cli.main import main as run

    return run()

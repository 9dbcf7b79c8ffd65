"""Where the console command begins: the imports of all verbs take seconds, in which Ctrl-C may
come."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command; returns its exit code, 130 after Ctrl-C."""
    try:
        from megatron_fastmix.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        print("megatron-fastmix: interrupted", file=sys.stderr)
        return 130

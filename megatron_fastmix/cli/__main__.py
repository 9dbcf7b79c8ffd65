"""`python -m megatron_fastmix.cli`, which launchers start on every rank."""

from __future__ import annotations

import sys

from megatron_fastmix.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())

"""What the launcher told this rank. Free of torch, whose import takes seconds."""

from __future__ import annotations

import os


def local_rank() -> int:
    """This rank among those of its host; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))

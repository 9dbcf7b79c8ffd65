"""Joining the other ranks."""

from __future__ import annotations

from typing import Any


def init_distributed(**arguments: Any) -> None:
    """`deepspeed.init_distributed` without the op that DeepSpeed would compile for CPU ranks.

    The op serves inference alone, compiling it takes half a minute, and a rank that is killed while
    it loads the op leaves a lock file on which every later run waits for ever, before any time
    limit of a collective holds.
    """
    import deepspeed  # takes seconds

    # The one reader of this is the loading of that op.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(verbose=False, **arguments)

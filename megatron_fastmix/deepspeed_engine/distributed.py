"""Joining the other ranks."""

from __future__ import annotations

from typing import Any

from megatron_fastmix.deepspeed_engine.versions import check_deepspeed


def init_distributed(**arguments: Any) -> None:
    """`deepspeed.init_distributed` without the op that DeepSpeed would compile for CPU ranks.

    The op serves inference alone, compiling it takes half a minute, and a rank that is killed while
    it loads the op leaves a lock file on which every later run waits for ever, before any time
    limit of a collective holds.
    """
    check_deepspeed()
    import deepspeed  # takes seconds
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    # Every op by its name, since DeepSpeed up to 0.19.2 looks them up without a default.
    deepspeed.ops.__compatible_ops__ = dict.fromkeys(ALL_OPS, False)
    deepspeed.init_distributed(verbose=False, **arguments)

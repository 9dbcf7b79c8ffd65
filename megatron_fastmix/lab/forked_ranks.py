"""Runs a function on N gloo ranks on the CPU, forked from a parent that has imported everything.

For tests and benchmarks: forking saves each rank the seconds that importing takes.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The forked ranks find these in memory; each import costs seconds.
import deepspeed  # noqa: F401
import megatron.core  # noqa: F401
import torch

from megatron_fastmix.deepspeed_engine.distributed import init_distributed

LIMIT_SECONDS = 240
"""A rank that takes longer is killed."""


def run_ranks(
    count: int, function: Callable[..., Any], *arguments: Any, limit: float = LIMIT_SECONDS
) -> list[Any]:
    """Calls `function(*arguments)` on each rank and returns what they return, by rank.

    DS_ACCELERATOR=cpu must be set before this module is imported. Raises `AssertionError` with the
    traceback of the ranks that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        ranks = [
            context.Process(target=_rank, args=(r, count, folder, function, arguments))
            for r in range(count)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(limit)
        stuck = [r for r, rank in enumerate(ranks) if rank.is_alive()]
        for r in stuck:
            ranks[r].kill()
        outcomes = []
        for r in range(count):
            file = Path(folder, f"{r}.pkl")
            outcomes.append(
                pickle.loads(file.read_bytes())
                if file.exists()
                else (False, f"died without a result, exit code {ranks[r].exitcode}")
            )
        failed = [f"rank {r}: {value}" for r, (good, value) in enumerate(outcomes) if not good]
        if stuck or failed:
            raise AssertionError(f"stuck: {stuck}\n" + "\n".join(failed))
        return [value for _, value in outcomes]


def _rank(
    rank: int, count: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_SIZE": str(count),
    }
    torch.set_num_threads(1)
    try:
        init_distributed(
            dist_backend="gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=count,
            auto_mpi_discovery=False,
        )
        outcome = (True, function(*arguments))
    except BaseException:
        outcome = (False, traceback.format_exc())
    aside = Path(folder, f"{rank}.tmp")
    aside.write_bytes(pickle.dumps(outcome))
    aside.rename(Path(folder, f"{rank}.pkl"))
    sys.stdout.flush()
    sys.stderr.flush()
    for child in multiprocessing.active_children():
        child.terminate()  # such as the one that Megatron-core's writer of checkpoints starts
    # Skips the interpreter's shutdown: a rank must not wait in the parent's exit handlers.
    os._exit(0)

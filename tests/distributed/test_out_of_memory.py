"""A rank whose memory does not suffice."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import OutOfMemoryError
from megatron_fastmix.lab.forked_ranks import LIMIT_SECONDS
from megatron_fastmix.start.launch import free_port
from megatron_fastmix.start.worker import run_worker
from tests.distributed.searches import load

ROOM = 1 << 30
"""Bytes beyond what the process has at its start."""


def only_rank(config: SearchConfig, output: Path) -> None:
    """As a launcher starts it, but for the limit."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    sys.stdout = sys.stderr = open(output, "w")  # noqa: SIM115  # to the end of the process
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    os._exit(run_worker(config))


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        (
            # A layer alone takes more.
            {"proxy.hidden_size": 8192},
            ["training.micro_batch_size 3", "recompute_granularity full", "zero_stage 2", "bf16"],
        ),
        (
            # Logits alone take more.
            {"data.seq_length": 2048, "proxy.make_vocab_size_divisible_by": 65536,
             "engine.zero_stage": 3, "proxy.recompute_granularity": "full"},
            ["training.micro_batch_size 3", "bf16", "lower data.seq_length or use more ranks"],
        ),
    ],
)  # fmt: skip
def test_out_of_memory_is_told_as_that_with_the_keys_that_help(
    search_values: dict, tmp_path: Path, changes: dict[str, Any], keys: list[str]
) -> None:
    config = load(search_values, **changes)
    output = tmp_path / "output"
    context = multiprocessing.get_context("fork")
    process = context.Process(target=only_rank, args=(config, output))
    process.start()
    process.join(LIMIT_SECONDS)
    text = output.read_text()
    assert process.exitcode == OutOfMemoryError.exit_code == 8, text
    assert "rank 0 on " in text
    assert ": out of memory: " in text
    assert "Traceback" not in text
    for key in keys:
        assert key in text
    assert ("proxy.recompute_granularity" in text) == ("recompute_granularity full" in keys)
    assert "there is no checkpoint yet: the same command starts again" in text

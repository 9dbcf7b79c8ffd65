"""A checkpoint of more ranks than a process may have open files."""

from __future__ import annotations

import dataclasses
import os
import resource
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.checkpoint.store import CheckpointWriter, complete_steps, rank_files
from megatron_fastmix.checkpoint.stored_parameters import StoredParameters
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.deepspeed_engine.state import snapshot
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.search.loop import Search
from tests.distributed.searches import load, run_search

RANKS = 1_100
OPEN_FILES = 1_024


def group_of(rank: int, size: int) -> DataParallelGroup:
    group = DataParallelGroup()
    group.rank, group.size = rank, size
    return group


def write_as_many_ranks(config: SearchConfig) -> None:
    """Writes the newest checkpoint again, as `RANKS` ranks would: each its share, by the writer."""
    search = Search(config)
    state = dataclasses.replace(search.state(), data_parallel_size=RANKS)
    writers = []
    for rank in range(RANKS):
        ranks = group_of(rank, RANKS)
        # One process writes them all, one after the other, so none waits for the others.
        writer = CheckpointWriter(search.folder, group_of(rank, 1), ranks, group_of(0, 1), 2)
        writer.begin(state, snapshot(search.engine, ranks))
        writers.append(writer)
        if rank:
            writer.finish()
    writers[0].finish()  # the one that publishes it


def resume_with_few_files(config: SearchConfig) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    with pytest.raises(OSError, match="Too many open files"):
        [open(os.devnull) for _ in range(OPEN_FILES)]  # noqa: SIM115  # the limit is one
    return run_search(config)


@pytest.mark.slow
def test_1100_ranks_are_resumed_with_1024_open_files(search_values: dict, tmp_path: Path) -> None:
    changes = {"engine.zero_stage": 0, "proxy.hidden_size": 16, "training.train_iters": 4}
    straight = load(search_values, run_dir=tmp_path / "straight", **changes)
    config = load(search_values, **changes)
    expected = run_ranks(1, run_search, straight)[0]
    run_ranks(1, run_search, config, 2)
    run_ranks(1, write_as_many_ranks, config)
    folder = RunFolder(Path(config.run_dir))
    assert complete_steps(folder) == [2]
    assert len(rank_files(folder, 2)) == RANKS
    resumed = run_ranks(1, resume_with_few_files, config)[0]
    assert resumed["complete"]
    for what in ("logits", "parameters"):
        np.testing.assert_array_equal(resumed[what], expected[what])
    # Written by one rank again: of the many nothing is left over.
    assert len(rank_files(folder, 4)) == 1


def test_a_directory_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a fragment of every parameter: to read them for each would take an hour at 1,100
    ranks."""
    opened: Counter[str] = Counter()

    class Counting(zipfile.ZipFile):
        def __init__(self, file: Any, *args: Any, **kwargs: Any) -> None:
            opened[os.path.basename(str(file))] += 1
            super().__init__(file, *args, **kwargs)

    files = []
    for rank in range(3):
        files.append(tmp_path / f"{rank}.npz")
        fragments = {f"master:{rank}:1:w{n}": np.full(1, 10 * n + rank, "f4") for n in range(5)}
        np.savez(files[-1], **fragments)  # type: ignore[arg-type]
    monkeypatch.setattr(zipfile, "ZipFile", Counting)
    stored = StoredParameters(files)
    for n in range(5):
        assert stored.read("master", f"w{n}", 0, 3).tolist() == [10 * n, 10 * n + 1, 10 * n + 2]
    assert opened == {f"{rank}.npz": 1 for rank in range(3)}

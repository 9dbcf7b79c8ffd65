"""A search on a file system that fails keeps its last checkpoint and its metrics, and goes on."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from megatron_fastmix.checkpoint.store import complete_steps
from megatron_fastmix.errors import FastMixError, StorageError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.storage import is_storage_error
from tests.distributed.searches import load, run_search, without_times
from tests.file_faults import file_faults


def run_with_fault(config: Any, number: int, first: int, lasting: bool) -> tuple[int, str]:
    """Runs a search whose run folder fails at an operation; how many there were, and the error."""
    folder = Path(config.run_dir)

    def fails(operation: int) -> bool:
        return operation >= first if lasting else operation == first

    with file_faults(folder, number, fails) as faults:
        try:
            run_search(config)
        except FastMixError as error:
            assert error.exit_code == StorageError.exit_code, error
            return faults.count, str(error)
        except OSError as error:  # `run_worker` tells it, with its path
            assert is_storage_error(error)
            return faults.count, str(error)
    return faults.count, ""


def of(config: Any) -> list[dict[str, Any]]:
    return without_times(RunFolder(Path(config.run_dir)).metrics)


def sweep(config_at: Any, values: dict, points: int) -> None:
    """All in one process, as starting one takes longest."""
    straight = load(values, run_dir=config_at / "straight")
    count, said = run_with_fault(straight, errno.EIO, -1, False)
    assert not said
    assert count > 50
    for number, lasting in ((errno.ESTALE, False), (errno.EIO, True)):
        for first in range(count // points // 2, count, count // points):
            config = load(values, run_dir=config_at / f"{number}-{first}")
            _, said = run_with_fault(config, number, first, lasting)
            if lasting:
                assert said
            folder = RunFolder(Path(config.run_dir))
            before = complete_steps(folder) if folder.path.exists() else []
            run_search(config)
            assert complete_steps(folder)[-1] >= max(before, default=0)
            assert of(config) == of(straight), (first, said)


@pytest.mark.slow
def test_a_search(search_values: dict, tmp_path: Path) -> None:
    run_ranks(1, sweep, tmp_path, search_values, 8, limit=400)


def metrics_fail(config: Any) -> str:
    """The metrics alone fail from a step on; the step's checkpoint is written."""
    metrics = RunFolder(Path(config.run_dir)).metrics
    with file_faults(metrics, errno.EIO, descriptors=False) as faults:
        faults.fails = lambda operation: operation > 6
        with pytest.raises(StorageError) as refused:
            run_search(config)
    return str(refused.value)


def test_metrics_that_fail_lose_no_checkpoint(search_values: dict, tmp_path: Path) -> None:
    config = load(search_values)
    (said,) = run_ranks(1, metrics_fail, config)
    assert "metrics.jsonl: Input/output error" in said
    steps = complete_steps(RunFolder(Path(config.run_dir)))
    assert steps
    assert f"resumes from the checkpoint of step {steps[-1]}" in said

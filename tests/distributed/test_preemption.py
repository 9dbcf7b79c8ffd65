"""A search that is killed again and again, as on preemptible machines."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil
import pytest

from megatron_fastmix.checkpoint.store import complete_steps
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.run.folder import RunFolder
from tests.distributed.searches import load, run_search, weights_of
from tests.distributed.test_launch import LIMIT_SECONDS, finish, lines, start
from tests.processes import wait_until_gone

STEPS = 240


def newest(run: RunFolder) -> int:
    return max(complete_steps(run), default=0)


@pytest.mark.slow
def test_each_part_that_lasts_to_a_checkpoint_brings_progress_and_nothing_is_lost(
    config_file: Path, search_values: dict, tmp_path: Path
) -> None:
    straight = load(search_values, run_dir=tmp_path / "straight", **{"training.train_iters": STEPS})
    run_ranks(2, run_search, straight)
    run = RunFolder(tmp_path / "preempted")
    flags = (f"--train-iters={STEPS}", f"--run_dir={run.path}", "--save-interval=3")
    reached = [0]
    for _ in range(4):
        process = start(config_file, *flags)
        deadline = time.monotonic() + LIMIT_SECONDS
        while newest(run) <= reached[-1]:
            assert process.poll() is None, finish(process)
            assert time.monotonic() < deadline
            time.sleep(0.02)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
        for member in reversed(family):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.communicate()
        wait_until_gone(family)
        reached.append(newest(run))
    assert reached == sorted(set(reached))
    assert reached[-1] < STEPS, "killed too late to tell anything"

    code, output = finish(start(config_file, *flags))
    assert code == 0, output
    assert lines(run.path) == lines(Path(straight.run_dir))
    assert weights_of(run.path) == weights_of(straight.run_dir)

"""How a search and its launchers end: signals, exit codes, output that nobody takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.parallel.roll_call import is_first_to_say
from megatron_fastmix.processes import STOP_SIGNALS
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.start.launch import free_port
from megatron_fastmix.start.worker import STOPPED_EXIT_CODE
from tests.distributed.test_launch import LIMIT_SECONDS, start


@pytest.mark.slow
def test_a_search_outlives_who_reads_its_output(config_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(config_file, f"--run_dir={run_dir}", "--num-ranks=1", "--log-interval=1")
    assert process.stdout is not None
    while "iteration" not in (line := process.stdout.readline()):
        assert line, process.wait()
    process.stdout.close()
    assert process.wait(timeout=LIMIT_SECONDS) == 0
    assert read_mixture(run_dir).complete


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_rank_that_is_stopped_at_its_start_can_be_queued_again(
    config_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = RunFolder(tmp_path / "run")
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "megatron_fastmix.cli", "search"),
            *("--config", str(config_file), f"--run_dir={run.path}"),
        ],
        env=os.environ | alone | {"MASTER_PORT": str(free_port())},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + LIMIT_SECONDS
    while not run.lock.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == STOPPED_EXIT_CODE, said
    assert "stopped before the first step" in said


RANK = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "stops", "code"), [(0, False, 3), (LIMIT_SECONDS, True, 75)])
def test_torchrun_ends_with_the_code_of_its_ranks(
    tmp_path: Path, seconds: float, stops: bool, code: int
) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "megatron_fastmix.start.torchrun", "--standalone"),
            *("--local-addr", "127.0.0.1", str(tmp_path / "rank.py"), str(seconds)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if stops:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == code


def say_twice() -> list[bool]:
    return [is_first_to_say(text, otherwise=False) for text in ("one", "another", "one")]


def test_what_ranks_of_a_host_have_to_say_is_said_once() -> None:
    assert is_first_to_say("alone", otherwise=True)
    answers = run_ranks(2, say_twice)
    assert [sum(each) for each in zip(*answers, strict=True)] == [1, 1, 0]

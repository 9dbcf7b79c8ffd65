"""A search under DeepSpeed's real launcher that loses a rank, its launcher or its folder."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch.distributed as dist

from megatron_fastmix.errors import CommunicationError, ConfigError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.parallel.groups import DataParallelGroup, limit_waiting
from megatron_fastmix.parallel.roll_call import missing_ranks, register
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.lock import RunLock
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.start.launch import cause_of_death, free_port
from megatron_fastmix.start.worker import STOPPED_EXIT_CODE, failed_collective
from tests.distributed.searches import load, run_search
from tests.distributed.test_launch import LIMIT_SECONDS, finish, lines, start, wait_for_step
from tests.processes import wait_until_gone

SCRIPTS = Path(__file__).parents[2] / "launch"


def ranks_of(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The processes of the ranks, by rank."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = child.cmdline()
            if "megatron_fastmix.cli" in command and "deepspeed.launcher.launch" not in command:
                found[int(child.environ()["RANK"])] = child
    return found


SRUN = """#!/usr/bin/env bash
tasks=$SLURM_NTASKS
while [[ $1 == --* ]]; do
  case $1 in
    --ntasks) tasks=$2; shift 2 ;;
    --nodes | --ntasks-per-node) shift 2 ;;
    *) shift ;;
  esac
done
pids=()
for ((task = 0; task < tasks; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
  pids+=($!)
done
for signal in TERM USR1; do
  trap "again=1; kill -$signal ${pids[*]}" "$signal"
done
highest=0
for pid in "${pids[@]}"; do
  again=1
  while [ "$again" ]; do again=; wait "$pid"; code=$?; done
  [ "$code" -gt "$highest" ] && highest=$code
done
exit "$highest"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1 $2" = "show hostnames" ]; then echo 127.0.0.1; fi
if [ "$1" = requeue ]; then echo "$2" > "$REQUEUED"; fi
"""


def start_job(folder: Path, config: Path, requeued: Path, *flags: str) -> subprocess.Popen[str]:
    """`launch/search.sbatch` as SLURM starts it, with two commands in the place of SLURM's."""
    commands = folder / "slurm"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    settings = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "REQUEUED": str(requeued),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "MASTER_PORT": str(free_port()),
        "PYTHON": sys.executable,
        "RUN_SECONDS_BEFORE_REQUEUE": "0",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return subprocess.Popen(
        ["bash", str(SCRIPTS / "search.sbatch"), "--config", str(config), *flags],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_search_loses_nothing_to_a_killed_rank_a_killed_launcher_and_sigterm(
    config_file: Path, search_values: dict, tmp_path: Path
) -> None:
    straight = load(search_values, run_dir=tmp_path / "straight", **{"training.train_iters": 120})
    run_ranks(2, run_search, straight)
    run_dir = tmp_path / "disturbed"
    flags = ("--train-iters=120", f"--run_dir={run_dir}")

    # One rank: the launcher ends the other, and says how to go on.
    killed = start(config_file, *flags)
    wait_for_step(run_dir, 7, killed)
    ranks = ranks_of(killed)
    ranks[1].suspend()  # the first waits for it while a second search asks for the folder
    code, output = finish(start(config_file, *flags))
    assert code == ConfigError.exit_code, output
    assert f"a search is running here, process {ranks[0].pid} on {socket.gethostname()}" in output

    ranks[1].kill()
    code, output = finish(killed)
    assert code == CommunicationError.exit_code, output
    assert "the same command resumes from the checkpoint of step" in output
    wait_until_gone(list(ranks.values()))

    # The launcher and the one that it started: the ranks stop with a checkpoint, by themselves.
    orphaned = start(config_file, *flags)
    wait_for_step(run_dir, 20, orphaned)
    ranks = ranks_of(orphaned)
    orphaned.kill()
    wait_until_gone(list(ranks.values()))
    orphaned.communicate()
    last = read_metrics(run_dir / "metrics.jsonl")[-1]
    assert (last["kind"], last["complete"]) == ("end", False)
    assert read_mixture(run_dir).steps == last["step"]

    # A scheduler's signal, of those that its users may choose: the job is queued again.
    requeued = tmp_path / "requeued"
    job = start_job(tmp_path, config_file, requeued, *flags)
    wait_for_step(run_dir, 40, job)
    for child in psutil.Process(job.pid).children():
        child.send_signal(signal.SIGUSR1)  # to srun, as SLURM does; not to the batch script
    code, output = finish(job)
    assert code == STOPPED_EXIT_CODE, output
    assert requeued.read_text() == "7\n"

    # And to its end, under another launcher.
    settings = {"LAUNCHER": "torchrun", "RANKS": "2", "PYTHON": sys.executable}
    last = subprocess.run(
        ["bash", str(SCRIPTS / "search.sh"), "--config", str(config_file), *flags],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert last.returncode == 0, last.stderr
    assert "learned weight" in last.stdout
    assert lines(run_dir) == lines(tmp_path / "straight")


@pytest.mark.slow
def test_a_hung_rank_ends_the_run_and_a_second_start_is_refused_at_once(
    config_file: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "hung"
    flags = (
        "--train-iters=100000",
        "--save-interval=100000",
        f"--run_dir={run_dir}",
        "--engine.distributed_timeout_minutes=1",
    )
    first = start(config_file, *flags)
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (RunFolder(run_dir).lock.exists() and RunFolder(run_dir).lock.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    code, output = finish(start(config_file, *flags))
    assert code == ConfigError.exit_code, output
    assert f"a search is running here, process {first.pid} on" in output
    assert not RunFolder(run_dir).metrics.exists()  # its ranks were still importing

    wait_for_step(run_dir, 3, first)
    ranks = ranks_of(first)
    ranks[1].suspend()
    code, output = finish(first)
    assert code == CommunicationError.exit_code, output
    assert f"no answer from rank 1 (process {ranks[1].pid} on {socket.gethostname()})" in output
    wait_until_gone(list(ranks.values()))


def lose_a_rank(said: Path) -> None:
    group = DataParallelGroup()
    group.sum(np.ones(1))
    if group.rank == 1:
        os._exit(9)
    try:
        group.sum(np.ones(1))
    except RuntimeError as error:
        said.write_text(str(failed_collective(error)))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-9, "SIGKILL, as the kernel does where memory runs out"),
        (247, "SIGKILL, as"),
        (137, "SIGKILL, as"),
        (-7, "SIGBUS, as where a file that it reads is cut short"),
        (249, "SIGBUS, as"),
        (-11, "SIGSEGV"),
        (1, "exit code 1"),
        (128, "exit code 128"),
    ],
)
def test_the_signal_that_ended_a_rank_is_explained(code: int, said: str) -> None:
    assert cause_of_death(code).startswith(said)


def test_a_failed_collective_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 1: died without a result, exit code 9"):
        run_ranks(2, lose_a_rank, tmp_path / "said")
    assert (tmp_path / "said").read_text() == "collective all_reduce"
    try:
        raise ValueError("of another kind")
    except ValueError as error:
        assert failed_collective(error) is None


def test_only_a_backends_own_words_make_an_error_of_a_collective() -> None:
    for text, expected in (
        ("this PyTorch has no NCCL; install one that has", None),
        ("Timed out reading data.json", None),
        ("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed", "a collective"),
        ("NCCL error in: ProcessGroupNCCL.cpp:1970, unhandled system error", "a collective"),
    ):
        found = failed_collective(RuntimeError(text))
        assert found == (None if expected is None else f"collective {expected}")


def name_who_is_missing(said: Path) -> None:
    register()
    DataParallelGroup().barrier()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    said.write_text(", ".join(missing_ranks(wait_seconds=1)))


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"stuck: \[1\]"):
        run_ranks(2, name_who_is_missing, tmp_path / "said", limit=8)
    assert re.fullmatch(
        rf"rank 1 \(process \d+ on {socket.gethostname()}\)", (tmp_path / "said").read_text()
    )


def wait_for_a_rank_that_is_stuck(said: Path) -> None:
    """In a group other than the default one, as DeepSpeed's and Megatron's are."""
    group = DataParallelGroup(dist.new_group([0, 1]))
    group.sum(np.ones(1))
    limit_waiting(timedelta(seconds=1))
    if group.rank == 1:
        time.sleep(8)
        return
    try:
        group.sum(np.ones(1))
    except RuntimeError as error:
        said.write_text(f"{failed_collective(error)}: {error}")


@pytest.mark.slow
def test_the_time_limit_holds_in_every_group(tmp_path: Path) -> None:
    run_ranks(2, wait_for_a_rank_that_is_stuck, tmp_path / "said")
    said = (tmp_path / "said").read_text()
    assert said.startswith("collective all_reduce: ")
    assert "Timed out waiting 1000ms" in said


HOLD = """
import sys, time
from pathlib import Path
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.lock import RunLock
RunLock(RunFolder(Path(sys.argv[1]))).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_lasts_as_long_as_its_process(tmp_path: Path) -> None:
    RunLock(RunFolder(tmp_path)).check_free()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for attempt in (RunLock(RunFolder(tmp_path)).acquire, RunLock(RunFolder(tmp_path)).check_free):
        with pytest.raises(ConfigError, match=f"process {holder.pid} on {socket.gethostname()}"):
            attempt()
    holder.kill()
    holder.communicate()
    lock = RunLock(RunFolder(tmp_path))
    lock.acquire()
    lock.release()
    assert (tmp_path / "lock").read_bytes() == b""


def test_a_lock_of_another_host_is_taken_over_when_it_no_longer_moves(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text('{"host": "elsewhere", "pid": 7}')
    said: list[str] = []
    began = time.monotonic()
    lock = RunLock(RunFolder(tmp_path), heartbeat_seconds=0.2)
    lock.acquire(said.append)
    assert time.monotonic() - began >= 0.6
    assert "left by process 7 on elsewhere" in said[0]
    # It moves from now on.
    wait_for_touch(file)
    lock.release()


def wait_for_touch(file: Path) -> None:
    before, deadline = file.stat().st_mtime_ns, time.monotonic() + 60
    while file.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lock_that_moves_on_another_host_is_respected(tmp_path: Path) -> None:
    """As on file systems that keep the locks of hosts apart: only the touching is seen."""
    file = tmp_path / "lock"
    file.write_text('{"host": "elsewhere", "pid": 7}')
    touching = subprocess.Popen(["bash", "-c", f"while touch {file}; do sleep 0.05; done"])
    wait_for_touch(file)
    with pytest.raises(ConfigError, match="a search is running here, process 7 on elsewhere"):
        RunLock(RunFolder(tmp_path), heartbeat_seconds=1).acquire()
    touching.kill()
    touching.wait()


def test_a_compilation_that_was_killed_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's lock on DeepSpeed's op for CPU ranks, as a rank leaves it that is killed there."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    assert run_ranks(2, os.getpid, limit=60)
    assert lock.exists()

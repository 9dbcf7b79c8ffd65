"""Starts the ranks of a search on this machine through DeepSpeed's launcher."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

from megatron_fastmix.checkpoint.store import complete_steps
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import CommunicationError, ConfigError, FastMixError
from megatron_fastmix.processes import STOP_SIGNALS, available_cores, stop_with_parent
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.lock import RunLock
from megatron_fastmix.search.budget import offered_shares
from megatron_fastmix.search.copies import copied_targets
from megatron_fastmix.search.inputs import Inputs, check_inputs
from megatron_fastmix.search.known_inputs import hand_on, take_over
from megatron_fastmix.start.accelerators import visible_accelerators
from megatron_fastmix.start.artifacts import result_text, write_run_artifacts
from megatron_fastmix.start.check_estimator import check_estimator
from megatron_fastmix.start.claim import check_content, check_folder, mark
from megatron_fastmix.start.first_line import first_line
from megatron_fastmix.start.limits import check_limits
from megatron_fastmix.start.worker import STOPPED_EXIT_CODE

CPU_RANKS = 2
"""Ranks where there is no accelerator."""


def launch(config: SearchConfig, ranks: int | None = None, *, accept_changes: bool = False) -> int:
    """Checks the inputs, starts `ranks` ranks (default: one per accelerator, or 2 on the CPU) and
    waits for them. Returns the exit code.

    The first Ctrl-C asks the ranks for a checkpoint and an orderly end; the second kills them.
    Raises `ConfigError` and `DataError` before anything is started. `accept_changes`: see
    `claim`.
    """
    if ranks is not None and ranks < 1:
        raise ConfigError(f"--num-ranks: found {ranks}; use 1 or more, or leave it out")
    devices = visible_accelerators()
    if not devices and os.environ.get("DS_ACCELERATOR") != "cpu":
        print(
            f"megatron-fastmix: found no accelerator; training on {ranks or CPU_RANKS} CPU ranks",
            file=sys.stderr,
        )
    ranks = ranks or len(devices) or CPU_RANKS
    if devices and ranks > len(devices):
        raise ConfigError(
            f"--num-ranks: found {ranks}; {len(devices)} accelerators are visible, and each rank "
            "needs its own (DS_ACCELERATOR=cpu runs on the CPU)"
        )
    check_limits(config)
    take_over(config)
    inputs = check_inputs(config, ranks)
    for line in copied_targets(config):
        print(f"megatron-fastmix: {line}", file=sys.stderr)
    if offered_shares(config, inputs) is None and config.output.token_budget is not None:
        print(
            "megatron-fastmix: output.token_budget only counts epochs; data.token_budget in its "
            "place has the search see how often the run repeats a source",
            file=sys.stderr,
        )
    if _finished(config) is None:
        print(first_line(config, inputs, ranks), flush=True)
    check_estimator(config)
    lock = RunLock(RunFolder(Path(config.run_dir)))
    lock.acquire(lambda text: print(f"megatron-fastmix: {text}", file=sys.stderr))
    try:
        return _launch(config, inputs, ranks, devices, lock, accept_changes=accept_changes)
    finally:
        lock.release()


def _launch(
    config: SearchConfig,
    inputs: Inputs,
    ranks: int,
    devices: list[str],
    lock: RunLock,
    *,
    accept_changes: bool,
) -> int:
    folder = check_folder(config, accept_changes=accept_changes)
    check_content(folder, config, inputs.tokenizer.sha256, accept_changes=accept_changes)
    finished = _finished(config)
    if finished is not None:
        _show(folder, finished)
        return 0
    mark(folder, config)
    hand_on(config, inputs)
    folder.clear_stop()
    environment = os.environ | lock.environment
    if not devices:
        environment.setdefault("DS_ACCELERATOR", "cpu")
        # The proxy uses none of the functions that Megatron compiles, and importing the compiler
        # is a third of the start.
        environment.setdefault("TORCHDYNAMO_DISABLE", "1")
    # By itself every rank would take all cores, beside an accelerator too.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // ranks)))
    # The launcher logs every exit code but 0 as an error, also that of an orderly stop; what there
    # is to say of a rank that died is said below.
    # On one machine the `deepspeed` command only works out these arguments, and imports DeepSpeed
    # once more to do so.
    command = [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--log_level", "critical"),
        *("--world_info", _world_info(devices[:ranks] or [str(rank) for rank in range(ranks)])),
        *("--master_port", str(free_port()), "--no_local_rank"),
        *("--module", "megatron_fastmix.cli", "search"),
        *("--config", str(folder.config)),
        *(["--accept-changes"] if accept_changes else []),
    ]
    # A session of its own keeps the terminal's Ctrl-C from the launcher, which would kill its
    # ranks at once.
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=stop_with_parent
    )
    previous = [
        (number, signal.signal(number, lambda *_: _stop(process, folder)))
        for number in STOP_SIGNALS
    ]
    try:
        code = process.wait()
    finally:
        for number, handler in previous:
            signal.signal(number, handler)
    folder.clear_stop()
    if code == STOPPED_EXIT_CODE:
        print(
            "Stopped after a checkpoint. To resume, run the same command again, or: "
            f"megatron-fastmix search --config {shlex.quote(str(folder.config))}"
        )
    known = {FastMixError.exit_code, *(e.exit_code for e in FastMixError.__subclasses__())}
    if code in known | {0, STOPPED_EXIT_CODE}:
        return code
    # DeepSpeed's launcher ended the other ranks when one died, before they could say anything.
    steps = complete_steps(folder)
    resumed = f"resumes from the checkpoint of step {steps[-1]}" if steps else "starts again"
    print(
        f"megatron-fastmix: a rank died ({cause_of_death(code)}); the same command {resumed}",
        file=sys.stderr,
    )
    return CommunicationError.exit_code


_OFTEN = {
    "SIGBUS": "as where a file that it reads is cut short meanwhile, such as a dataset's .bin, or "
    "where /dev/shm is full",
    "SIGKILL": "as the kernel does where memory runs out; dmesg says so",
}


def cause_of_death(code: int) -> str:
    """What a launcher's exit code says of the rank that died: its signal, and what often sends it.

    A signal n is −n, 256 − n as a process that exits with −n hands it on, or a shell's 128 + n.
    """
    number = -code if code < 0 else 256 - code if code > 192 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"exit code {code}"
    return f"{name}, {_OFTEN[name]}" if name in _OFTEN else name


def _finished(config: SearchConfig) -> LearnedMixture | None:
    """The result in the run folder for the configuration's token budget, where the search is
    complete."""
    folder = RunFolder(Path(config.run_dir))
    if not folder.mixture.exists():
        return None
    mixture = read_mixture(folder.path)
    # A configuration that trains for longer goes on with it.
    done = mixture.complete and mixture.steps >= config.training.train_iters
    return mixture.for_budget(config.token_budget) if done else None


def _show(folder: RunFolder, mixture: LearnedMixture) -> None:
    files = write_run_artifacts(folder.path, mixture)
    print(f"{folder.path}: this search is complete; choose another run_dir for a new one.\n")
    print(result_text(folder.path, mixture, files))


def _world_info(devices: list[str]) -> str:
    """The ranks of this machine, one per device, as DeepSpeed's launcher takes them."""
    return base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()


def _stop(process: subprocess.Popen[bytes], folder: RunFolder) -> None:
    if folder.stop_requested():
        print("Killed; the last checkpoint stays.", file=sys.stderr)
        os.killpg(process.pid, signal.SIGKILL)
    else:
        folder.request_stop()
        # Under the bar of rank 0, where there is one.
        start = "\n" if sys.stderr.isatty() else ""
        text = f"{start}Stopping after this step; Ctrl-C again kills the ranks."
        print(text, file=sys.stderr)


def free_port() -> int:
    """A port for rank 0 to listen on. It is below those that Linux gives to whoever asks for any,
    so that nobody is given it in the seconds until the rank takes it."""
    for port in random.sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise CommunicationError("found no free port among 100 between 20000 and 32767")

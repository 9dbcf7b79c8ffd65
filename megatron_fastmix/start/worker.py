"""One rank of a search, from process start to exit code."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from megatron_fastmix.checkpoint.store import complete_steps
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import (
    CommunicationError,
    ConfigError,
    FastMixError,
    OutOfMemoryError,
    StorageError,
)
from megatron_fastmix.parallel.environment import local_rank, number_device
from megatron_fastmix.processes import STOP_SIGNALS, stop_with_parent
from megatron_fastmix.program import give_up_output
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.lock import RunLock
from megatron_fastmix.start.accelerators import device_files, hidden_on_purpose
from megatron_fastmix.start.claim import check_folder, mark
from megatron_fastmix.start.limits import raise_open_files
from megatron_fastmix.storage import describe, is_storage_error

STOPPED_EXIT_CODE = 75
"""Exit code of a search that was stopped and can be resumed (EX_TEMPFAIL of sysexits.h)."""

_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|failed to allocate", re.IGNORECASE
)
_FROM_A_BACKEND = re.compile(r"/gloo/transport/|NCCL error in:|ProcessGroupNCCL|ncclRemoteError")
"""What the backends write into their own errors, which autograd's threads raise without a trace."""


def run_worker(config: SearchConfig, *, accept_changes: bool = False) -> int:
    """Runs this rank; rank 0 prints the result. Returns the exit code.

    Where a collective failed it does not return: the process ends, since its peers are gone and
    orderly ends would wait for them.
    """
    # None is about anything that a user of the search could change.
    warnings.filterwarnings("ignore", category=UserWarning, module="megatron")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.optim\.lr_scheduler")
    stop_with_parent()
    # Before its first step a search has nothing to lose, and indexing datasets can take longer than
    # a scheduler waits.
    for number in STOP_SIGNALS:
        signal.signal(number, _stop_at_start)
    raise_open_files()
    lock = RunLock(RunFolder(Path(config.run_dir)))
    try:
        if _rank() == "0":
            lock.acquire(_say)  # before the imports, which take up to a minute
        return _search(config, accept_changes)
    except FastMixError as error:
        # Ranks meet most errors together; some only one, which then says it on whatever host.
        if (local_rank() == 0 or not error.is_echo) and _is_first_to_say(str(error)):
            _say(str(error))
        return error.exit_code
    except OSError as error:
        # Without a path it is about a connection, unless it is one that only file systems have.
        if error.filename is None and not is_storage_error(error):
            raise
        _say(f"rank {_rank()}: {describe(error)}; {_last_checkpoint(config)}")
        _exit(StorageError.exit_code)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            _say(f"rank {_rank()} on {socket.gethostname()}: {_out_of_memory(error, config)}")
            _exit(OutOfMemoryError.exit_code)
        collective = failed_collective(error)
        if collective is None:
            raise
        _say(
            f"rank {_rank()} on {socket.gethostname()}: {collective} failed: "
            f"{_first_line(error)}; {_who_is_missing()}; {_last_checkpoint(config)}"
        )
        _exit(CommunicationError.exit_code)
    finally:
        lock.release()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the accelerator or on the host."""
    named = any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__)
    return named or isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def _out_of_memory(error: BaseException, config: SearchConfig) -> str:
    wishes = []
    if config.training.micro_batch_size > 1:
        wishes.append(f"lower training.micro_batch_size {config.training.micro_batch_size}")
    if config.proxy.recompute_granularity is None and config.proxy.kind != "provider":
        wishes.append("set proxy.recompute_granularity full")
    if config.engine.zero_stage < 3:
        wishes.append(f"raise engine.zero_stage {config.engine.zero_stage}")
    if config.engine.dtype == "fp32":
        wishes.append("set engine.dtype bf16")
    wishes.append("lower data.seq_length or use more ranks")
    return (
        f"out of memory: {_first_line(error)}; {', '.join(wishes)} (megatron-fastmix plan says "
        f"what fits); {_last_checkpoint(config)}"
    )


def failed_collective(error: BaseException) -> str | None:
    """The collective in whose call `error` arose, and from where; None where it arose elsewhere."""
    found, ours = None, ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if "megatron_fastmix" in path.parts and path.name != "groups.py":
            ours = f" in {path.name}:{frame.lineno} ({frame.name})"
        elif path.name == "distributed_c10d.py" and not frame.name.startswith("wrapper"):
            found = frame.name
    if found is None and _FROM_A_BACKEND.search(str(error)):
        found = "a collective"
    return None if found is None else f"collective {found}{ours}"


def _search(config: SearchConfig, accept_changes: bool) -> int:
    import torch

    from megatron_fastmix.deepspeed_engine.distributed import init_distributed
    from megatron_fastmix.parallel.device import local_device
    from megatron_fastmix.parallel.groups import DataParallelGroup, limit_waiting
    from megatron_fastmix.parallel.roll_call import register
    from megatron_fastmix.search.loop import Search, raise_where_failed
    from megatron_fastmix.start.artifacts import result_text, write_run_artifacts

    device = local_device()
    unused = device_files()
    on_purpose = os.environ.get("DS_ACCELERATOR") == "cpu" or hidden_on_purpose()
    if device.type == "cpu" and unused and not on_purpose:
        raise ConfigError(
            f"{socket.gethostname()} has {unused[0]}, but torch {torch.__version__} sees no "
            "accelerator: install a torch built for it; DS_ACCELERATOR=cpu runs on the CPU"
        )
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
        number_device(device.index)
    timeout = timedelta(minutes=config.engine.distributed_timeout_minutes)
    init_distributed(timeout=timeout)
    world = DataParallelGroup(device=device)
    register()
    _on_rank_0(world, config, partial(check_folder, config, accept_changes=accept_changes))
    search = Search(config, device, accept_changes=accept_changes)
    # A resume that is refused leaves the folder as it was.
    _on_rank_0(world, config, partial(mark, search.folder, config))
    limit_waiting(timeout)

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        search.stop_signalled = True

    for number in STOP_SIGNALS:
        signal.signal(number, ask_to_stop)
    complete = search.run()
    failure: OSError | None = None
    if world.rank == 0:
        try:
            mixture = search.result()
            files = write_run_artifacts(config.run_dir, mixture)
            search.folder.clear_stop()
            text = result_text(search.folder.path, mixture, files)
        except OSError as error:
            failure = error
        else:
            try:
                print(f"\n{text}", flush=True)
            except OSError:  # nobody reads it, or the log's disk is full
                give_up_output()
    raise_where_failed(world, failure, f"{config.run_dir}: the result", _last_checkpoint(config))
    torch.distributed.destroy_process_group()
    return 0 if complete else STOPPED_EXIT_CODE


def _on_rank_0(world: Any, config: SearchConfig, act: Callable[[], object]) -> None:
    """Rank 0 does something with the run folder. Every rank must call.

    Raises `ConfigError` on all ranks where rank 0 cannot.
    """
    refused: FastMixError | None = None
    if world.rank == 0:
        try:
            act()
        except FastMixError as error:
            refused = error
        except OSError as error:
            refused = StorageError(f"run_dir: {describe(error, config.run_dir)}")
    if world.any(refused is not None):
        raise refused or ConfigError(
            f"{config.run_dir}: rank 0 was refused it, as it says", is_echo=True
        )


def _who_is_missing() -> str:
    from megatron_fastmix.parallel.roll_call import missing_ranks

    missing = missing_ranks()
    if missing:
        return f"no answer from {', '.join(missing)}: gone, hung, or cut off"
    return (
        "all ranks live: a link failed, or one was slower than engine.distributed_timeout_minutes"
    )


def _last_checkpoint(config: SearchConfig) -> str:
    try:
        steps = complete_steps(RunFolder(Path(config.run_dir)))
    except OSError:
        return "the same command resumes from the newest checkpoint"
    if not steps:
        return "there is no checkpoint yet: the same command starts again"
    return f"the same command resumes from the checkpoint of step {steps[-1]}"


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))


def _is_first_to_say(text: str) -> bool:
    """Of this host's ranks; until they know each other that is local rank 0."""
    if "torch" not in sys.modules:  # whose import takes seconds
        return local_rank() == 0
    from megatron_fastmix.parallel.roll_call import is_first_to_say

    return is_first_to_say(text, otherwise=local_rank() == 0)


def _stop_at_start(number: int, frame: FrameType | None) -> NoReturn:
    if local_rank() == 0:
        _say("stopped before the first step; the same command starts again")
    _exit(STOPPED_EXIT_CODE)


def _rank() -> str:
    return os.environ.get("RANK", "0")


def _say(text: str) -> None:
    print(f"megatron-fastmix: {text}", file=sys.stderr, flush=True)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

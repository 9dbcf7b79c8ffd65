"""One rank of a search, from process start to exit code."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from datetime import timedelta
from types import FrameType

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import FastMixError
from megatron_fastmix.search import run_folder

STOPPED_EXIT_CODE = 75
"""Exit code of a search that was stopped and can be resumed (EX_TEMPFAIL of sysexits.h)."""


def run_worker(config: SearchConfig) -> int:
    """Runs this rank; rank 0 prints the result. Returns the exit code."""
    first_of_host = os.environ.get("LOCAL_RANK", "0") == "0"
    # Neither is about anything that a user of the search could change.
    warnings.filterwarnings("ignore", category=UserWarning, module="megatron")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    try:
        return _search(config)
    except FastMixError as error:
        # All ranks meet such an error together; once for each host is enough.
        if first_of_host:
            print(f"megatron-fastmix: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _search(config: SearchConfig) -> int:
    import deepspeed
    import torch
    from deepspeed.accelerator import get_accelerator

    from megatron_fastmix.export.run_artifacts import write_run_artifacts
    from megatron_fastmix.report.summary import final_table
    from megatron_fastmix.search.loop import Search

    run_folder.claim(config, write=os.environ.get("RANK") == "0")
    accelerator = get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    if not on_cpu:
        accelerator.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    timeout = timedelta(minutes=config.engine.distributed_timeout_minutes)
    deepspeed.init_distributed(timeout=timeout, verbose=False)
    device = "cpu" if on_cpu else accelerator.current_device_name()
    search = Search(config, device)

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        search.stop_signalled = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    complete = search.run()
    if search.world.rank == 0:
        mixture = search.result()
        files = write_run_artifacts(config.run_dir, mixture)
        print()
        print(final_table(mixture, blend_txt=files.blend_txt, blend_json=files.blend_json))
    search.world.barrier()
    torch.distributed.destroy_process_group()
    return 0 if complete else STOPPED_EXIT_CODE

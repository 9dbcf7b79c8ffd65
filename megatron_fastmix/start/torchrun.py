"""`torchrun` that ends with the exit code of its ranks, where torch's own ends with 1.

python -m megatron_fastmix.start.torchrun ARGUMENTS OF torchrun
"""

from __future__ import annotations

import os
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from megatron_fastmix.start.worker import STOPPED_EXIT_CODE

_SHUTDOWN_SECONDS = 300
"""For a step, an outer step and a checkpoint after a signal, in place of 30."""


def main(arguments: list[str] | None = None) -> int:
    """Runs torchrun; returns 0, the exit code of the rank that failed first, or that of a stopped
    search after a signal."""
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SHUTDOWN_SECONDS))
    try:
        run.main(arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode
    except SignalException:
        return STOPPED_EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())

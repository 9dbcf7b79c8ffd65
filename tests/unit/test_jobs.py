"""How a job that fails is told: each in a process of its own."""

import errno
import os
import signal

import pytest
import torch

from megatron_fastmix.errors import NonFiniteError, OutOfMemoryError, StorageError
from megatron_fastmix.lab.jobs import Job, run_jobs


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore about it")


def full_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/rows/rows.jsonl")


def not_finite():
    raise NonFiniteError("step 3: the gradient is not finite")


def mistaken():
    raise KeyError("of the program")


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        (killed, OutOfMemoryError, r"row 1: its process was killed, .* --workers"),
        (out_of_memory, OutOfMemoryError, r"row 1: out of memory: CUDA .* 2 GiB; .* --workers"),
        (full_disk, StorageError, r"row 1: /rows/rows\.jsonl: No space left on device; free"),
        (not_finite, NonFiniteError, "step 3: the gradient is not finite"),
        (mistaken, RuntimeError, r"row 1:\nTraceback[\s\S]*KeyError: 'of the program'"),
    ],
)
def test_a_job_that_fails_is_told_as_what_it_is(function, error, said):
    job = Job(name="row 1", function=function, arguments=())
    with pytest.raises(error, match=said):
        run_jobs([job], workers=1, preload=["torch"])

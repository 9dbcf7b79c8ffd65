"""The device of this rank, chosen here alone."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from megatron_fastmix.parallel.environment import local_rank


def local_device() -> torch.device:
    """The accelerator of this rank, by LOCAL_RANK among those that it sees (SLURM may show each
    task one); the CPU where there is none, or DS_ACCELERATOR=cpu asks for it."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, local_rank() % torch.accelerator.device_count())


def collective_device() -> torch.device:
    """Where the default process group wants its tensors: the current CUDA device under NCCL."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")

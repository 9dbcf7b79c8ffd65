"""Megatron-core's process groups under the names that DeepSpeed asks its `mpu` for."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state


class MegatronMPU:
    """DeepSpeed's model-parallel unit; its model parallelism is Megatron's tensor parallelism."""

    def get_model_parallel_group(self) -> Any:
        return parallel_state.get_tensor_model_parallel_group()

    def get_model_parallel_rank(self) -> int:
        return parallel_state.get_tensor_model_parallel_rank()

    def get_model_parallel_world_size(self) -> int:
        return parallel_state.get_tensor_model_parallel_world_size()

    def get_data_parallel_group(self) -> Any:
        return parallel_state.get_data_parallel_group()

    def get_data_parallel_rank(self) -> int:
        return parallel_state.get_data_parallel_rank()

    def get_data_parallel_world_size(self) -> int:
        return parallel_state.get_data_parallel_world_size()

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(self.get_data_parallel_group())

"""DeepSpeed and parallelism."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_fastmix.config.require import require, set_paths_as_in_a_shell

_LONGEST_MINUTES = 365 * 24 * 60
"""A year: no rank is waited for longer, and clocks hold it."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """DeepSpeed and parallelism."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage. Of bf16 rather 1 than 0: without ZeRO, DeepSpeed waits in every step for each
    parameter to tell whether its gradient is finite."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision in which the proxy trains. `finite_difference` runs its probe in fp32 either way,
    since a perturbation of bf16 parameters rounds away."""
    tensor_model_parallel_size: int = 1
    """Ranks that share each layer (Megatron's flag)."""
    pipeline_model_parallel_size: int = 1
    """Must be 1: DeepSpeed's ZeRO 2 and 3 exclude pipelines, and a proxy fits without."""
    deepspeed_config: str | None = None
    """JSON file of DeepSpeed's own settings, such as zero_optimization.offload_optimizer or bucket
    sizes. What contradicts the search's settings or what its outer step cannot stand is refused by
    name."""
    distributed_timeout_minutes: int = 10
    """Longest wait in a collective before the run is stopped (Megatron's flag)."""

    def __post_init__(self) -> None:
        set_paths_as_in_a_shell(self, ("deepspeed_config",))
        minutes = self.distributed_timeout_minutes
        require(
            1 <= minutes <= _LONGEST_MINUTES,
            "engine.distributed_timeout_minutes",
            minutes,
            f"use 1 to {_LONGEST_MINUTES}",
        )
        size = self.tensor_model_parallel_size
        require(size >= 1, "engine.tensor_model_parallel_size", size, "use at least 1")
        require(
            self.pipeline_model_parallel_size == 1,
            "engine.pipeline_model_parallel_size",
            self.pipeline_model_parallel_size,
            "use 1: ZeRO 2 and 3 exclude pipelines, and a proxy fits without; to split a large "
            "one, use engine.zero_stage 3 or engine.tensor_model_parallel_size",
        )

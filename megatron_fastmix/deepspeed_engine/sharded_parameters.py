"""A model's parameters as one vector under ZeRO-3, where DeepSpeed keeps a shard on each rank."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.parameters import Parameters, Vector


class ShardedParameters(Parameters):
    """ZeRO-3: rank r holds the r-th of equal shards of each flattened parameter, the last of them
    padded.

    v has the same shards, padded with zeros, and is never whole.
    """

    are_sharded = True

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        group: DataParallelGroup,
        release: Callable[[], None],
        tensor_group: DataParallelGroup | None = None,
        leaf_modules: Sequence[torch.nn.Module] = (),
    ) -> None:
        """`release` drops every gathered parameter (DeepSpeed: `empty_partition_cache`).

        ZeRO-3 keeps small parameters gathered, and those of modules whose inputs need no gradient,
        so the next forward pass would not see a shard that was replaced; and after a backward pass
        that fires none of its hooks it takes them for in use.

        `leaf_modules` are those whose gradients DeepSpeed reduces together, once a backward pass
        has left them (blocks of experts): see `outside_training`.
        """
        super().__init__(parameters, group, tensor_group)
        self._release = release
        self._leaf_modules = leaf_modules

    @contextlib.contextmanager
    def outside_training(self) -> Iterator[None]:
        kept = [module._backward_hooks for module in self._leaf_modules]
        try:
            for module in self._leaf_modules:
                module._backward_hooks = OrderedDict()
            yield
        finally:
            for module, hooks in zip(self._leaf_modules, kept, strict=True):
                module._backward_hooks = hooks

    def release(self) -> None:
        self._release()

    def local(self) -> Vector:
        return [parameter.ds_tensor.data for parameter in self.parameters]

    def whole(self, index: int, part: torch.Tensor) -> torch.Tensor:
        parameter = self.parameters[index]
        flat = part.new_empty(part.numel() * self.group.size)
        dist.all_gather_into_tensor(flat, part, group=self.group.group)
        return flat[: parameter.ds_numel].view(parameter.ds_shape)

    @contextlib.contextmanager
    def gathered(self, module: torch.nn.Module) -> Iterator[None]:
        from deepspeed import zero  # takes seconds

        apart = [p for p in module.parameters() if p.ds_status.name == "NOT_AVAILABLE"]
        with zero.GatheredParameters(apart, enabled=bool(apart)):
            yield

    def dot(self, index: int, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        # Beyond the end of the parameter DeepSpeed's last shards hold what was in their memory.
        held = self.parameters[index].ds_numel - self.group.rank * one.numel()
        held = min(max(held, 0), one.numel())
        return super().dot(index, one[:held], other[:held])

    def finish_gradient(self, vector: Vector) -> None:
        """Nothing is left to do: the shards were reduced as they came."""

    def subset(self, keep: Callable[[torch.nn.Parameter], bool]) -> Parameters:
        kept = [p for p in self.parameters if keep(p)]
        return ShardedParameters(
            kept, self.group, self._release, self.tensor_group, self._leaf_modules
        )

    def _point_at(self, storage: Vector) -> None:
        for parameter, part in zip(self.parameters, storage, strict=True):
            parameter.ds_tensor.data = part
        self._release()
        if storage[0].device.type != "cpu":
            # DeepSpeed gathers on a stream of its own, which does not wait for the one that has
            # written these shards.
            torch.accelerator.synchronize()

    def _sum_of_shards(self, value: torch.Tensor) -> torch.Tensor:
        return super()._sum_of_shards(self.group.sum_tensor_(value))

    def _local_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        size = self.group.size
        length = -(-gradient.numel() // size)
        padded = gradient.reshape(-1).float()
        if padded.numel() < length * size:
            padded = torch.nn.functional.pad(padded, (0, length * size - padded.numel()))
        shard = padded.new_empty(length)
        dist.reduce_scatter_tensor(shard, padded, group=self.group.group)
        return shard

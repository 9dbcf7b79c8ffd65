"""Collectives over the data-parallel ranks; every collective of the package is in `parallel`."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_fastmix.errors import RankDivergenceError

_CLOSE = 1e-9
"""Rounding of float64 over an outer step stays far below this, other data or code far above."""


def limit_waiting(limit: timedelta) -> None:
    """Has every collective of every group made so far fail after `limit`.

    `init_process_group` gives its limit to the default group alone; those of Megatron and DeepSpeed
    would wait for half an hour. Not a collective.
    """
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(limit, group)


class DataParallelGroup:
    """The ranks that hold the same parameters and read different data."""

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`group` None is the default group, or one process alone where there is none."""
        self.group = group
        self.device = device
        alone = not dist.is_initialized()
        self.rank = 0 if alone else dist.get_rank(group)
        self.size = 1 if alone else dist.get_world_size(group)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum over the ranks in float64, the same bits on each. Every rank must call."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on one of the ranks. Every rank must call."""
        return bool(self.sum(np.array([float(flag)]))[0])

    def sum_tensor_(self, tensor: torch.Tensor) -> torch.Tensor:
        """In-place sum over the ranks. Every rank must call."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def of_first(self, values: np.ndarray) -> np.ndarray:
        """The values of the group's first rank, bit for bit, on each. Every rank must call."""
        if self.size == 1:
            return values
        tensor = torch.from_numpy(values.copy()).to(self.device)
        dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor.cpu().numpy()

    def barrier(self) -> None:
        """Waits for the others. Every rank must call."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def check_equal(self, values: np.ndarray, names: list[str], what: str) -> None:
        """Raises `RankDivergenceError` on every rank unless `values` (N,) are bitwise equal on all.

        Every rank must call.
        """
        # As integers, so that NaN equals NaN and −0 differs from 0.
        bits = np.ascontiguousarray(values, dtype=np.float64).view(np.int64)
        highest = self._reduce(bits, dist.ReduceOp.MAX)
        lowest = self._reduce(bits, dist.ReduceOp.MIN)
        if np.array_equal(highest, lowest):
            return
        at = int(np.flatnonzero(highest != lowest)[0])
        ends = np.array([lowest[at], highest[at]], dtype=np.int64).view(np.float64).tolist()
        raise self._divergence(what, names[at], ends)

    def check_close(self, values: np.ndarray, names: list[str], what: str) -> None:
        """Raises `RankDivergenceError` on every rank unless finite `values` (N,) are equal on all,
        but for what processors of several kinds make of the same computation.

        Every rank must call.
        """
        highest = self._reduce(values, dist.ReduceOp.MAX)
        lowest = self._reduce(values, dist.ReduceOp.MIN)
        apart = highest - lowest > _CLOSE * np.maximum(1.0, np.abs(highest))
        if apart.any():
            at = int(np.flatnonzero(apart)[0])
            raise self._divergence(what, names[at], [float(lowest[at]), float(highest[at])])

    def _divergence(self, what: str, name: str, ends: list[float]) -> RankDivergenceError:
        return RankDivergenceError(
            f"{what} of {name} differ over {self.size} ranks, {min(ends)} to {max(ends)}; the "
            "ranks run different data, code or library versions"
        )

    def _reduce(self, values: np.ndarray, operation: dist.ReduceOp) -> np.ndarray:
        if self.size == 1:
            return values.copy()
        tensor = torch.from_numpy(values.copy()).to(self.device)
        dist.all_reduce(tensor, op=operation, group=self.group)
        return tensor.cpu().numpy()

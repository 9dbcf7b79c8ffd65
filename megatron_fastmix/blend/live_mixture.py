"""A mixture that moves during a run, seen by every DataLoader worker of its process."""

from __future__ import annotations

import bisect
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from megatron_fastmix.blend.order.spread_order import DRAW_ORDER
from megatron_fastmix.blend.shares import normalized
from megatron_fastmix.blend.weight_schedule import Change, WeightSchedule, read_schedule
from megatron_fastmix.errors import CheckpointError, ConfigError, RankDivergenceError
from megatron_fastmix.parallel.device import collective_device
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.rounding import written_weights

logger = logging.getLogger(__name__)

_PROCESSES = 257
"""Processes that note their draws apart: the training process and its workers."""
_SHARED_BYTES = 1 << 25
_LATE = (
    "the weights change at sample %d, past the end of the blend (%d samples), and so never do: %s"
)


class LiveMixture:
    """Named sources and their weights, as a history of changes by training sample.

    Draw i of a blend follows the weights in force at sample i, whoever draws it and when: all of
    it lies in shared memory, so that workers of a DataLoader, forked or spawned, see an update
    as soon as it is made.

    **How stale a weight can be.** Batches that workers have fetched ahead are not taken back: with
    `num_workers` workers up to `num_workers · prefetch_factor` batches (torch's default factor is
    2) exist before training asks for them. `update` therefore takes effect at a sample that no
    process has drawn yet: by default at the first block boundary after the furthest draw of any
    rank, and one block later where there are workers. Thus the weights that training sees lag
    behind an update by the prefetched batches and at most two blocks; without workers, by at most
    one block. A weight is never stale in the other sense: no sample is drawn under weights
    that the history denies, so a resumed run draws the same.
    """

    counter: memoryview
    """Its first element is another number after every change of the history."""
    sources: Mapping[str, Sequence[str]] | None = None
    """The paths of each source, where they are known: `install` tells datasets by them."""
    left_out: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Those of sources that were learned and are not drawn; their datasets may be in the blend."""
    blend_length: int | None = None
    """Samples of the training blend that follows these weights, once it is built; ranks that
    build none do not know it."""
    _place: tuple[int, int]
    """This process and its place among those that note their draws."""

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        block_size: int = 1024,
        max_updates: int | None = None,
    ) -> None:
        """Starts with `weights` by source name, of any sum, from sample 0 on.

        Args:
            weights: in the order of the datasets of the blend.
            block_size: weights change at its multiples; the global batch size is the natural one.
            max_updates: changes that the shared memory has place for (8·(K + 1) bytes each);
                default: 1024, fewer for more than 4,000 sources.

        Raises `ConfigError` for weights that are no shares.
        """
        self.names = list(weights)
        self.block_size = block_size
        if block_size < 1:
            raise ConfigError(f"block_size: found {block_size}; use 1 or more")
        if max_updates is None:
            max_updates = min(1024, max(16, _SHARED_BYTES // (8 * (len(self.names) + 1))))
        self._state = torch.zeros(1 + _PROCESSES, dtype=torch.int64).share_memory_()
        self._samples = torch.zeros(1 + max_updates, dtype=torch.int64).share_memory_()
        self._rows = torch.zeros(
            1 + max_updates, len(self.names), dtype=torch.float64
        ).share_memory_()
        self._open()
        self._replace([(0, self._shares(weights))])

    @classmethod
    def from_schedule(
        cls, schedule: WeightSchedule | str | Path, *, block_size: int = 1024
    ) -> LiveMixture:
        """The mixture of a schedule, or of its file; changes inside a block wait for its end.

        Raises `DataError` for a file that is no schedule.
        """
        if not isinstance(schedule, WeightSchedule):
            schedule = read_schedule(schedule)
        first, *others = schedule.changes
        spare = max(1024, len(others))
        mixture = cls(first.weights, block_size=block_size, max_updates=spare)
        rows = [(0, mixture._shares(first.weights))]
        for change in others:
            rows.append((mixture._boundary(change.at_sample), mixture._shares(change.weights)))
        mixture._replace(rows)
        return mixture

    @classmethod
    def from_mixture_file(cls, path: str | Path, *, block_size: int = 1024) -> LiveMixture:
        """What a search learned, from its mixture.json or run folder, as shares of samples: of rows
        where it learned from answer-only ones. Sources whose weight no blend file writes, because
        it rounds to 0, are left out. Raises `DataError`."""
        learned = read_mixture(path)
        shares = learned.shares("samples")
        written = written_weights(shares)
        mixture = cls({name: shares[name] for name in written}, block_size=block_size)
        paths = {source.name: source.prefixes for source in learned.sources}
        mixture.sources = {name: paths.pop(name) for name in written}
        mixture.left_out = paths
        return mixture

    @property
    def weights(self) -> np.ndarray:
        """The newest weights, float64 of shape (K,), summing to 1."""
        return self._row_array[self._count - 1].copy()

    @property
    def loss_weights(self) -> np.ndarray:
        """K times the newest weights: the loss's factors under uniform sampling, (K,)."""
        return len(self.names) * self.weights

    def weights_at(self, sample: int) -> np.ndarray:
        """The weights in force at a training sample, (K,)."""
        starts = self._sample_array[: self._count].tolist()
        return self._row_array[bisect.bisect_right(starts, sample) - 1].copy()

    def loss_weights_at(self, sample: int) -> np.ndarray:
        """K times `weights_at`, (K,)."""
        return len(self.names) * self.weights_at(sample)

    @property
    def history(self) -> list[tuple[int, np.ndarray]]:
        """Every change: (first sample, weights (K,)), the first from sample 0 on."""
        return self.changes()

    def changes(self, since: int = 0) -> list[tuple[int, np.ndarray]]:
        """`history` from the change of number `since` on."""
        new = slice(since, self._count)
        return list(zip(self._sample_array[new].tolist(), self._row_array[new], strict=True))

    @property
    def drawn(self) -> int:
        """The end of the furthest block that any process of this rank has drawn from."""
        return int(self._state_array[1:].max())

    def note_drawn(self, sample: int) -> int:
        """Says that this process draws samples of the block of `sample`, and returns its end.

        Called by a blend whose draws follow these weights, before it looks at them.
        """
        process, place = self._place
        if process != os.getpid():
            worker = get_worker_info()
            # Past the last place workers share one, where the smaller of two may win.
            place = 1 if worker is None else 1 + min(worker.id + 1, _PROCESSES - 1)
            self._place = os.getpid(), place
        end = self._boundary(sample + 1)
        self.counter[place] = max(self.counter[place], end)
        return end

    def note_blend(self, length: int) -> None:
        """Says that the training blend that follows these weights has `length` samples. Logs the
        first change that it ends before, as where a schedule was made for a longer run."""
        self.blend_length = length
        late = next((at for at, _ in self.history if at >= length), None)
        if late is not None:
            logger.warning(_LATE, late, length, "train longer, or change them earlier")

    def update(
        self,
        weights: Mapping[str, float] | Sequence[float] | np.ndarray,
        at_sample: int | None = None,
    ) -> int:
        """Changes the weights from a sample on, on all ranks at once. Every rank must call.

        Args:
            weights: by name, or (K,) in the order of `names`; of any sum.
            at_sample: first sample under the new weights, rounded up to a block boundary (and
                logged, when that moves it). Default: the earliest that nobody has drawn yet.

        Returns the sample at which they take effect.

        Raises `RankDivergenceError` on every rank where ranks ask for different things, and
        `ConfigError` for weights that are no shares, a sample that was drawn or changed already,
        or more than `max_updates` changes; the history is then as before. Raises `ConfigError` on
        every rank, after the change, where a worker drew past the sample in the same moment.
        """
        problem: ConfigError | None = None
        shares = np.full(len(self.names), np.nan)
        try:
            shares = self._shares(weights)
        except ConfigError as error:
            # Raised after the collectives, in which the others wait for this rank.
            problem = error
        group = DataParallelGroup(device=collective_device())
        asked = -1 if at_sample is None else at_sample
        try:
            group.check_equal(
                np.array([asked, self._count, self._sample_array[self._count - 1], *shares]),
                ["at_sample", "number of changes", "last change", *self.names],
                "the update's values",
            )
        except RankDivergenceError:
            if problem:
                raise problem from None
            raise
        if problem:
            raise problem
        furthest, workers = self._furthest(group)
        last = int(self._sample_array[self._count - 1])
        if at_sample is None:
            at = max(furthest + (self.block_size if workers else 0), last)
        else:
            at = self._boundary(at_sample)
            if at < max(furthest, last):
                raise ConfigError(
                    f"at_sample: found {at_sample}; the blocks before {furthest} are drawn from "
                    f"already (DataLoader workers fetch ahead) and the last change is at {last}; "
                    f"the earliest possible is {max(furthest, last)}"
                )
        if self._count == len(self._row_array):
            raise ConfigError(
                f"max_updates: the mixture has place for {self._count - 1} changes, all used; "
                "make it with a larger max_updates"
            )
        if group.rank == 0 and at_sample is not None and at != at_sample:
            logger.warning(
                "at_sample %d is inside a block of %d; the weights change at sample %d",
                at_sample,
                self.block_size,
                at,
            )
        if group.rank == 0 and self.blend_length is not None and at >= self.blend_length:
            why = "with --dataloader-type cyclic the first draws reach to the end: use single"
            logger.warning(_LATE, at, self.blend_length, why)
        self._append(at, shares)
        furthest, _ = self._furthest(group)
        if furthest > at:
            raise ConfigError(
                f"a DataLoader worker drew up to sample {furthest} while the weights changed at "
                f"{at}; give a later at_sample"
            )
        return at

    def schedule(self) -> WeightSchedule:
        """The history as a schedule, which can be written and exported."""
        # Of changes at one sample the last holds.
        latest = dict(self.history)
        return WeightSchedule(
            changes=tuple(
                Change(at_sample=at, weights=dict(zip(self.names, row.tolist(), strict=True)))
                for at, row in latest.items()
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs beside the number of consumed samples, as JSON values."""
        return {
            "names": self.names,
            "block_size": self.block_size,
            "history": [[at, row.tolist()] for at, row in self.history],
            "draw_order": DRAW_ORDER,
        }

    def load_state_dict(self, state: Mapping[str, Any], consumed_samples: int = 0) -> None:
        """Restores `state_dict()`, in a run that goes on after `consumed_samples`, which `update`
        leaves as they were drawn. Raises `CheckpointError` for other sources or blocks."""
        for key, here in (("names", self.names), ("block_size", self.block_size)):
            if state[key] != here:
                raise CheckpointError(
                    f"the checkpoint's mixture has {key} {state[key]}, this one {here}; make it "
                    "as the run was started"
                )
        if len(state["history"]) > len(self._row_array):
            raise CheckpointError(
                f"the checkpoint's mixture has {len(state['history']) - 1} changes, this one place "
                f"for {len(self._row_array) - 1}; make it with a larger max_updates"
            )
        if consumed_samples and state.get("draw_order") != DRAW_ORDER:
            logger.warning(
                "the checkpoint is of an earlier release, which drew in another order after a "
                "change of weights and after a source's cap: some samples may be read again"
            )
        self._replace([(at, np.array(row)) for at, row in state["history"]])
        if consumed_samples:
            self.note_drawn(consumed_samples - 1)

    def __getstate__(self) -> dict[str, Any]:
        return {
            k: v for k, v in self.__dict__.items() if k != "counter" and not k.endswith("_array")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        self._place = 0, 1
        self._state_array: np.ndarray = self._state.numpy()
        # Its elements are Python's integers, which are cheaper to get than NumPy's.
        self.counter = memoryview(self._state_array)
        self._sample_array: np.ndarray = self._samples.numpy()
        self._row_array: np.ndarray = self._rows.numpy()

    @property
    def _count(self) -> int:
        return self.counter[0] & 0xFFFFFFFF

    def _append(self, at: int, shares: np.ndarray) -> None:
        count = self._count
        self._sample_array[count] = at
        self._row_array[count] = shares
        # Last, and in one store: who sees the new number finds the row.
        self.counter[0] += 1

    def _replace(self, rows: Sequence[tuple[int, np.ndarray]]) -> None:
        generation = (self.counter[0] >> 32) + 1
        for number, (at, shares) in enumerate(rows):
            self._sample_array[number] = at
            self._row_array[number] = shares
        self.counter[0] = generation << 32 | len(rows)

    def _boundary(self, sample: int) -> int:
        return -(-sample // self.block_size) * self.block_size

    def _shares(self, weights: Mapping[str, float] | Sequence[float] | np.ndarray) -> np.ndarray:
        if isinstance(weights, Mapping):
            if set(weights) != set(self.names):
                raise ConfigError(
                    f"weights: found {', '.join(weights)}; expected one for each of "
                    f"{', '.join(self.names)}"
                )
            weights = [weights[name] for name in self.names]
        if len(weights) != len(self.names):
            raise ConfigError(f"weights: found {len(weights)}; expected {len(self.names)}")
        try:
            return normalized(weights)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _furthest(self, group: DataParallelGroup) -> tuple[int, bool]:
        """The furthest draw of any rank, and whether any rank draws in workers."""
        mine = np.zeros((group.size, 2))
        mine[group.rank] = self.drawn, self._state_array[2:].any()
        furthest, workers = group.sum(mine).max(axis=0)
        return int(furthest), bool(workers)

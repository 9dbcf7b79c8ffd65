"""Which samples every forward pass of the search reads, as functions of the step alone.

Global batches are laid out over ranks as Megatron does: micro-batch m of rank r holds samples
(m·R + r)·B … of the step's global batch, so the data-parallel size changes nothing about them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from megatron_fastmix.batch.batch import Batch, Role, send
from megatron_fastmix.batch.drawn_probe import draw_counts, draw_probe, generator_of
from megatron_fastmix.batch.packing import collate
from megatron_fastmix.batch.probe_allocation import allocate
from megatron_fastmix.batch.read_ahead import ReadAhead
from megatron_fastmix.batch.targets import ValidationTarget
from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.mixture.grouping import Grouping
from megatron_fastmix.parallel.groups import DataParallelGroup


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of a batch to be."""

    read: Callable[[], dict[str, Any]]
    """What its dataset gives; called on the rank that the sample falls to, and nowhere else."""
    index: int
    """Its source or target."""
    role: Role = Role.SOURCE
    weight: float = 1.0
    """Its factor in a weighted sum of losses."""


class Batches:
    """Reads the batches of one rank."""

    def __init__(
        self,
        config: SearchConfig,
        blend: FastMixBlendedDataset,
        targets: Sequence[ValidationTarget],
        group: DataParallelGroup,
        *,
        grouping: Grouping | None = None,
        read_ahead: bool = False,
    ) -> None:
        """`grouping` is what has a logit, for a probe of `probe_samples`; None for the sources.
        With `read_ahead`, training batches are read by a thread beforehand, up to the next step
        of the mixture, on which draws may depend; otherwise those of the same step are."""
        self.config = config
        self.blend = blend
        self.targets = targets
        self.group = group
        self.grouping = grouping or Grouping.singletons(config.source_names)
        self.size = config.training.micro_batch_size
        self.accumulation_steps = config.accumulation_steps(group.size)
        self._seconds = 0.0
        self._ahead = ReadAhead(
            self._read_training,
            micro_steps=self.accumulation_steps,
            within=config.mixture.inner_steps if read_ahead else 1,
            total=config.training.train_iters,
        )

    def training(self, step: int, micro_step: int) -> Batch:
        """Micro-batch `micro_step` of optimizer step `step` (both from 0) on this rank."""
        began = time.monotonic()
        batch = self._ahead.take(step, micro_step)
        self._seconds += time.monotonic() - began
        return batch

    def _read_training(self, step: int, micro_step: int) -> Batch:
        first = step * self.config.training.global_batch_size
        first += (micro_step * self.group.size + self.group.rank) * self.size
        drawn = [self.blend[i] for i in range(first, first + self.size)]
        samples = [Sample(read=sample.copy, index=int(sample["dataset_id"])) for sample in drawn]
        return self._collate(samples)[0]

    def take_seconds(self) -> float:
        """Seconds that training waited for batches since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def objective(
        self, outer_step: int, weights: np.ndarray, target_weights: np.ndarray
    ) -> list[list[tuple[Batch, torch.Tensor]]]:
        """This rank's part of the batches whose weighted loss ℓ has the gradient v.

        `weights` is α (K,), `target_weights` is ω (V,).
        Target v takes `target_samples` of its walk, each weighing ω_v over their number. With
        β > 0, `probe_samples_per_source` training samples of each source, others than the probe's,
        follow with weights β·α_k over their number. All of it together, or where products are
        estimated per target, each target apart with 1 for ω_v, the β term last.
        """
        self._ahead.wait()
        config = self.config.hypergradient
        n = config.target_samples
        if self.config.estimates_per_target:
            target_weights = np.ones(len(target_weights))
        terms: list[list[Sample]] = [
            [
                Sample(
                    read=partial(target.sample, outer_step * n + j),
                    index=v,
                    role=Role.TARGET,
                    weight=omega / n,
                )
                for j in range(n)
            ]
            for v, (target, omega) in enumerate(zip(self.targets, target_weights, strict=True))
        ]
        beta = self.config.objective.train_loss_weight
        if beta and config.probe_samples is not None:
            terms.append(self._drawn_objective(outer_step, beta, weights, config.probe_samples))
        elif beta:
            m = config.probe_samples_per_source
            terms.append(
                [
                    Sample(
                        read=partial(self.blend.sample, "objective", k, outer_step * m + j),
                        index=k,
                        weight=beta * alpha / m,
                    )
                    for k, alpha in enumerate(weights)
                    for j in range(m)
                ]
            )
        if not self.config.estimates_per_target:
            terms = [[sample for term in terms for sample in term]]
        return [self.split(term) for term in terms]

    def _drawn_objective(
        self, outer_step: int, beta: float, weights: np.ndarray, total: int
    ) -> list[Sample]:
        """β·Σ α_k L_k from `total` samples that are drawn by α."""
        random = generator_of(self.config.seed, outer_step, "objective")
        counts = draw_counts(total * weights / weights.sum(), random)
        return [
            Sample(
                read=partial(self.blend.sample, "objective", k, outer_step * total + j),
                index=k,
                weight=beta / total,
            )
            for k in np.flatnonzero(counts).tolist()
            for j in range(counts[k])
        ]

    def sources_of(self, step: int) -> np.ndarray:
        """The source of every sample of optimizer step `step` over all ranks, (global batch,).

        Nothing is read for it. Draws of the current interval of the mixture alone are known.
        """
        self._ahead.wait()
        first = step * self.config.training.global_batch_size
        drawn = range(first, first + self.config.training.global_batch_size)
        return np.array([self.blend.source_of(i) for i in drawn])

    def probe(
        self, outer_step: int, weights: np.ndarray, among: np.ndarray | None = None
    ) -> list[Batch]:
        """This rank's part of the probe: `probe_samples_per_source` samples of a source on
        average, shared out by `probe_allocation`, or `probe_samples` of all together, drawn for
        this step; `weights` is α (K,). Only of the sources
        `among`, bool (K,), where given; the others' samples change nothing about theirs."""
        first, counts = self._probe_ordinals(outer_step, weights)
        if among is not None:
            counts = np.where(among, counts, 0)
            if not counts.any():
                return []
        samples = [
            Sample(read=partial(self.blend.sample, "probe", k, first + j), index=k)
            for j in range(counts.max())
            for k in np.flatnonzero(counts > j).tolist()
        ]
        return [batch for batch, _ in self.split(samples)]

    def distinct_in_probe(self, outer_step: int, weights: np.ndarray) -> np.ndarray:
        """Distinct samples of each source among those of `probe` over all ranks, int (K,)."""
        first, counts = self._probe_ordinals(outer_step, weights)
        return np.array(
            [
                len({self.blend.position("probe", k, first + j) for j in range(count)})
                for k, count in enumerate(counts.tolist())
            ]
        )

    def _probe_ordinals(self, outer_step: int, weights: np.ndarray) -> tuple[int, np.ndarray]:
        """(first ordinal of every source, samples of each source (K,)) of a probe."""
        config = self.config.hypergradient
        total = config.probe_samples
        if total is not None:
            random = generator_of(self.config.seed, outer_step, "probe")
            return outer_step * total, draw_probe(total, self.grouping, random)
        m = config.probe_samples_per_source
        counts = allocate(weights, m, config.probe_allocation)
        # Ordinals must not depend on what earlier steps allocated.
        stride = m if config.probe_allocation == "even" else m * len(counts)
        return outer_step * stride, counts

    def split(self, samples: Sequence[Sample]) -> list[tuple[Batch, torch.Tensor]]:
        """Spreads samples over ranks and micro-batches, as many passes on each rank."""
        mine = list(samples[self.group.rank :: self.group.size])
        longest = -(-len(samples) // self.group.size)
        # A rank that is short repeats a sample with no weight: passes are collective in ZeRO-3.
        mine += [replace(samples[0], role=Role.PADDING, weight=0.0)] * (longest - len(mine))
        return [
            self._collate(mine[first : first + self.size]) for first in range(0, longest, self.size)
        ]

    def _collate(self, samples: Sequence[Sample]) -> tuple[Batch, torch.Tensor]:
        data = self.config.data
        tensors = collate([s.read() for s in samples], data.seq_length, data.packing)
        batch = Batch(
            index=np.array([sample.index for sample in samples]),
            role=np.array([sample.role for sample in samples]),
            **tensors,
        )
        weights = torch.tensor([sample.weight for sample in samples])
        return batch.to(self.group.device), send(weights, self.group.device)

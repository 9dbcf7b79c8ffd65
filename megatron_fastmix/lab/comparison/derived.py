"""Mixtures made from one that FastMix found: its trajectory as a schedule, or a cap on reads.

Nothing is searched anew: each costs what the search cost that it is from.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_fastmix.blend.weight_schedule import Change, WeightSchedule
from megatron_fastmix.config import SearchConfig, TrainingConfig
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.adjustment import Adjustment, adjust
from megatron_fastmix.export.learned_phases import trajectory, trajectory_means
from megatron_fastmix.lab.baselines.registry import FASTMIX, METHODS
from megatron_fastmix.lab.baselines.result import BaselineResult
from megatron_fastmix.lab.comparison.row_file import Record
from megatron_fastmix.lab.comparison.rows import Held, SearchRow
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.rounding import round_weights
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.search.inputs import check_inputs


def check_name(name: str, where: str) -> None:
    """Raises `ConfigError` for one that cannot stand in tables and file names beside methods."""
    if not re.fullmatch(r"[\w.=-]+", name) or name in METHODS:
        raise ConfigError(
            f"{where}: found the name {name!r}; use letters, digits, - _ = and . alone, "
            "and no method's name"
        )


@dataclass(frozen=True, kw_only=True)
class Derived:
    """One more method: a target model is trained on what is made from a search's result."""

    name: str
    """As a variant's."""
    of: str = FASTMIX
    """FastMix or the variant whose search it is made from."""
    phases: float | None = None
    """Two phases: for this part of the training the mean of the search's weights over the same part
    of the search, then that over the rest."""
    continuous: bool = False
    """The weights of each outer step for the part of the training that they held for in the search,
    the initial ones first."""
    max_reads: float | None = None
    """The search's mixture, but no source is read more often than this by the target model's
    training; the other sources share the excess by their weights."""

    def __post_init__(self) -> None:
        check_name(self.name, "derived")
        made = [self.phases is not None, self.continuous, self.max_reads is not None]
        if sum(made) != 1:
            raise ConfigError(
                f"derived: {self.name}: found {sum(made)} of phases, continuous and max_reads; "
                "give one"
            )
        if self.phases is not None and not 0 < self.phases < 1:
            raise ConfigError(
                f"derived: {self.name}: phases: found {self.phases}; use a part between 0 and 1"
            )
        if self.max_reads is not None and not 0 < self.max_reads < math.inf:
            raise ConfigError(
                f"derived: {self.name}: max_reads: found {self.max_reads}; use a number above 0"
            )

    @property
    def needs_trajectory(self) -> bool:
        """Whether it is made from the run folder, not from the row alone."""
        return self.max_reads is None

    def settings(self, tokens: int) -> Record:
        """What the mixture depends on besides the search, for its row; `tokens` are those of the
        target model's training."""
        values: Record = {"of": self.of, "phases": self.phases, "continuous": self.continuous}
        if self.max_reads is not None:
            values |= {"max_reads": self.max_reads, "tokens": tokens}
        return {"derived": values}

    def row(self, base: SearchRow, config: SearchConfig, result: Path, tokens: int) -> SearchRow:
        """The row of the mixture that is made from `base`, found with `config`, whose mixture file
        is `result`, beside its run folder.

        Raises `ConfigError` where it cannot be made, and `DataError` for a damaged folder.
        """
        schedule: tuple[Held, ...] = ()
        if self.max_reads is not None:
            weights = _capped(base, config, self.max_reads, tokens)
        else:
            schedule = self._schedule(result)
            weights = _mean(schedule)
        return dataclasses.replace(
            base,
            method=self.name,
            weights=weights,
            weight_std=dict.fromkeys(weights, 0.0),
            settings=self.settings(tokens),
            schedule=schedule,
        )

    def _schedule(self, result: Path) -> tuple[Held, ...]:
        mixture, metrics = read_mixture(result), run_folder(result).metrics
        if self.phases is not None:
            main, anneal = trajectory_means(metrics, mixture, self.phases)
            held = [(0.0, main), (self.phases, anneal)]
        else:
            held = [
                (step / mixture.steps, weights)
                for step, weights in trajectory(metrics, mixture)
                if step < mixture.steps
            ]
        return tuple(
            Held(at=at, weights={n: float(w) for n, w in round_weights(weights).items()})
            for at, weights in held
        )


def run_folder(result: Path) -> RunFolder:
    """That of the search of FastMix whose mixture file is `result`."""
    return RunFolder(result.with_suffix(""))


def has_trajectory(result: Path) -> bool:
    """Whether the steps of the finished search whose mixture file is `result` are there."""
    try:
        mixture = read_mixture(result)
        moves = trajectory(run_folder(result).metrics, mixture)[1:]
    except DataError:
        return False
    return mixture.complete and len(moves) == mixture.outer_steps


def weight_schedule(held: Sequence[Held], training: TrainingConfig) -> WeightSchedule | None:
    """The schedule of a training, changes at its nearest steps; None for a static mixture."""
    changes = {round(each.at * training.train_iters): each.weights for each in held}
    if not changes:
        return None
    return WeightSchedule(
        changes=tuple(
            Change(at_sample=step * training.global_batch_size, weights=weights)
            for step, weights in changes.items()
            if step < training.train_iters
        )
    )


def _mean(schedule: Sequence[Held]) -> dict[str, float]:
    """Over the training."""
    ends = [each.at for each in schedule[1:]] + [1.0]
    names = schedule[0].weights
    return {
        name: math.fsum(
            (end - each.at) * each.weights[name] for each, end in zip(schedule, ends, strict=True)
        )
        for name in names
    }


def _capped(
    base: SearchRow, config: SearchConfig, max_reads: float, tokens: int
) -> dict[str, float]:
    inputs = check_inputs(config, 1)
    if any(source.answer_only for source in inputs.sources):
        raise ConfigError(
            "derived: max_reads counts the reads of text; leave it out where sources are answers"
        )
    found = BaselineResult(
        weights=np.array([base.weights[name] for name in config.source_names]),
        flops=0.0,
        tokens=0,
        steps=0,
    )
    mixture = found.outcome(config, base.method, 0.0).learned_mixture(config, inputs)
    wanted = Adjustment(fixed={}, groups={}, token_budget=tokens, max_epochs=max_reads)
    return adjust(mixture, wanted).mixture.weights

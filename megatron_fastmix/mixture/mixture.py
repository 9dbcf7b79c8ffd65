"""The mixture α = softmax(z): its logits, their optimizer and their history.

Pure NumPy in float64 and free of collectives: ranks that feed the same hypergradients into the same
mixture hold the same logits, but for the last bits where their processors differ (`agree`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from megatron_fastmix.config import MixtureConfig
from megatron_fastmix.errors import CheckpointError, NonFiniteError
from megatron_fastmix.mixture.grouping import Bounds, Grouping
from megatron_fastmix.mixture.history_text import packed_rows, unpacked_rows
from megatron_fastmix.mixture.optimality import Optimality, judge_optimality, over_the_free
from megatron_fastmix.mixture.outer_optimizer import OUTER_OPTIMIZERS
from megatron_fastmix.mixture.schedule import scheduled_rate
from megatron_fastmix.mixture.simplex import (
    project_onto_bounds,
    project_onto_nested_bounds,
    safe_log,
    softmax,
)


def averaged_steps(outer_steps: int, fraction: float) -> int:
    """How many of the last iterates the reported mixture averages; at least one."""
    return max(1, round(fraction * outer_steps))


class Mixture:
    """K named sources, the logits y (G,) of the groups that share one, and the outer optimizer that
    moves them. Unless groups are learned, every source has a logit of its own, and G = K."""

    def __init__(
        self,
        names: Sequence[str],
        config: MixtureConfig,
        *,
        bounds: Bounds | None = None,
        total_steps: int = 1,
        groups: Grouping | None = None,
        group_bounds: Bounds | None = None,
    ) -> None:
        """`bounds` are the least and the largest weight of each source, `group_bounds` those of
        each of `groups`, (G,); `total_steps` outer steps are the length of the learning rate's
        decay. With `learn: groups` the shares inside `groups` stay, and each has a logit.
        """
        self.names = list(names)
        self.config = config
        self.total_steps = total_steps
        self.groups = groups
        """The groups that are reported; None without any."""
        learned = groups if config.learn == "groups" else None
        self.grouping = learned or Grouping.singletons(names)
        """The groups that have a logit each."""
        lower, upper = bounds or ([0.0] * len(self.names), [1.0] * len(self.names))
        own = group_bounds if learned else None
        self._lower, self._upper = self.grouping.bounds((lower, upper), own)
        self._nested: tuple[np.ndarray, np.ndarray] | None = None
        """Bounds of the groups, (G,) each, where their sources have a logit each."""
        if groups is not None and learned is None and group_bounds is not None:
            least, most = group_bounds
            self._nested = np.asarray(least, float), np.asarray(most, float)
        self._y = self._start(config.initial_weights)
        self._keep_bounds()
        self._optimizer = OUTER_OPTIMIZERS[config.optimizer](len(self._y), config)
        self.history = [softmax(self.logits)]
        self.generation = 0
        """Another number after a checkpoint's history has taken this one's place."""
        self.advantages: list[np.ndarray] = []
        """A of each outer step and of what has a logit, (G,), NaN where it is not known."""

    def _start(self, initial: Sequence[float] | None) -> np.ndarray:
        """y at the start, (G,): of even weights, or of those of the groups together."""
        start = np.ones(len(self.grouping.names))
        if initial is not None:
            start = self.grouping.sums(np.asarray(initial, dtype=np.float64))
        logits = np.log(start)
        centred: np.ndarray = logits - logits.mean()
        return centred

    @property
    def logits(self) -> np.ndarray:
        """z, (K,): of a source in a group that of the group plus the log of its share inside."""
        return self.grouping.source_logits(self._y)

    @property
    def weights(self) -> np.ndarray:
        """α, float64 of shape (K,), summing to 1."""
        return self.history[-1]

    @property
    def logit_weights(self) -> np.ndarray:
        """a, the weight of what has a logit, (G,)."""
        return softmax(self._y)

    @property
    def loss_weights(self) -> np.ndarray:
        """The factor of each source's samples in the loss, (K,): K·α where sources are drawn
        evenly, 1 where they are drawn by α."""
        if self.config.weighting == "sampling":
            return np.ones(len(self.names))
        return len(self.names) * self.weights

    @property
    def outer_steps(self) -> int:
        """Outer steps taken."""
        return len(self.history) - 1

    @property
    def lr(self) -> float:
        """Learning rate of the outer step to come."""
        config = self.config
        return scheduled_rate(
            self.outer_steps,
            peak=config.lr,
            final=config.min_lr,
            warmup=config.lr_warmup_steps,
            total=self.total_steps,
            style=config.lr_decay_style,
        )

    def update(
        self,
        gradient: np.ndarray,
        seen: np.ndarray | None = None,
        advantage: np.ndarray | None = None,
    ) -> None:
        """One outer step.

        Args:
            gradient: h = ∂ℓ/∂a, shape (G,), with G = K unless groups are learned.
            seen: bool, shape (G,): groups with evidence. The others keep their logit and do not
                shift the mean that centres the rest.
            advantage: A (`optimality.advantages`), shape (G,), kept for the verdict on the run.

        Raises `NonFiniteError` where a logit would become NaN or Inf; the logits stay then.
        """
        weights = self.logit_weights
        seen = np.ones(len(weights), dtype=bool) if seen is None else seen
        if seen.any():
            self._move(self._optimizer.step(gradient, weights, seen, self.lr))
            self._keep_bounds()
        self.history.append(softmax(self.logits))
        unknown = np.full(len(weights), np.nan)
        self.advantages.append(unknown if advantage is None else advantage)

    def agree(self, of_first: Callable[[np.ndarray], np.ndarray]) -> None:
        """Takes y and α of the first rank, which `of_first` gives for this rank's: NumPy's exp and
        log differ in the last bit between processors, and equal draws rest on equal weights."""
        agreed = of_first(self.weights)
        if not self.outer_steps and not np.array_equal(agreed, self.weights):
            self.generation += 1  # a blend may have begun to draw by them
        self._y, self.history[-1] = of_first(self._y), agreed

    def averaged(self) -> tuple[np.ndarray, np.ndarray, int]:
        """The reported mixture: mean and standard deviation of α over the tail of the run.

        Returns (mean (K,), standard deviation (K,), iterates averaged).
        """
        count = averaged_steps(self.outer_steps, self.config.averaging_fraction)
        tail = np.stack(self.history[-count:])
        return tail.mean(axis=0), tail.std(axis=0), count

    def averaged_groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each of `groups`, over the tail of the run: standard deviation of its weight, mean
        advantage over the groups inside their bounds and standard error of that mean, (G,) each;
        NaN where they are not known."""
        assert self.groups is not None
        count = averaged_steps(self.outer_steps, self.config.averaging_fraction)
        spread = self.groups.sums(np.stack(self.history[-count:])).std(axis=0)
        mean, error, _ = self._group_advantages()
        return spread, mean, error

    def _group_advantages(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `over_the_free` finds for each of `groups`, (G,) each."""
        assert self.groups is not None
        advantage, before = self._averaged_part()
        if self.grouping.is_trivial:
            # A of a group is the mean of its sources' by their weights before the step.
            known = np.where(np.isfinite(advantage), before, 0.0)
            total = self.groups.sums(known)
            summed = self.groups.sums(known * np.nan_to_num(advantage))
            advantage = np.divide(summed, total, out=np.full_like(total, np.nan), where=total > 0)
        lower, upper = np.zeros(len(self.groups.names)), np.ones(len(self.groups.names))
        if self.grouping is self.groups:
            lower, upper = self._lower, self._upper
        elif self._nested is not None:
            lower, upper = self._nested
        return over_the_free(advantage, self.groups.sums(before), lower, upper)

    def _averaged_part(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the T outer steps of the tail of the run, the advantages of what has a logit, (T, G),
        and α before each, (T, K)."""
        count = averaged_steps(self.outer_steps, self.config.averaging_fraction)
        return (
            np.reshape(self.advantages[-count:], (-1, len(self.grouping.names))),
            np.reshape(self.history[:-1][-count:], (-1, len(self.names))),
        )

    def optimality(self) -> Optimality:
        """Whether the averaged part of the run is at an optimum, of what has a logit."""
        advantage, before = self._averaged_part()
        return judge_optimality(
            self.grouping.names,
            advantage,
            self.grouping.sums(before),
            outer_steps=self.outer_steps,
            lower=self._lower.tolist(),
            upper=self._upper.tolist(),
            held=None if self._nested is None else self._held(),
        )

    def _held(self) -> np.ndarray:
        """By source, int (K,): its group where a bound of that group's own holds it, else −1."""
        assert self.groups is not None
        assert self._nested is not None
        least, most = self._nested
        advantage, _, at_rest = self._group_advantages()
        held = at_rest & np.where(advantage < 0, least > 0, most < 1)
        return np.where(held[self.groups.members], self.groups.members, -1)

    def state(self) -> dict[str, Any]:
        """Everything that exact resume needs, as JSON values (float64 round-trips by repr)."""
        groups = [] if self.grouping.is_trivial else self.grouping.members.tolist()
        return {
            "names": self.names,
            "groups": groups,
            "shares": self.grouping.shares.tolist() if groups else [],
            "logits": self._y.tolist(),
            "optimizer": self._optimizer.state(),
            "history": packed_rows(self.history),
            "advantages": packed_rows(self.advantages),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores `state()`. Raises `CheckpointError` where the sources or their groups differ."""
        if state["names"] != self.names:
            raise CheckpointError(
                f"the checkpoint's sources are {state['names']}, the configuration's {self.names}; "
                "use the same sources in the same order, or another run_dir"
            )
        mine = self.state()
        for key in ("groups", "shares"):  # checkpoints of before there were groups have neither
            if state.get(key, []) != mine[key]:
                raise CheckpointError(
                    f"the {key} of the sources that share a logit are {mine[key]} here and "
                    f"{state.get(key, [])} in the checkpoint; shares inside a group follow from "
                    "mixture.initial_weights or the sizes of the sources: restore these, or use "
                    "another run_dir"
                )
        logits = np.array(state["logits"], dtype=np.float64)
        if not np.isfinite(logits).all():
            raise CheckpointError(
                f"the checkpoint's logits are {logits.tolist()}; remove it, so that the one before "
                "is taken"
            )
        self._y = logits
        self._optimizer.load_state(state["optimizer"])
        self.history = unpacked_rows(state["history"], len(self.names))
        self.generation += 1
        # Checkpoints of before they were kept have none.
        kept = state.get("advantages", [[None] * len(logits)] * self.outer_steps)
        self.advantages = unpacked_rows(kept, len(logits))

    def _move(self, change: np.ndarray) -> None:
        logits = self._y + change
        for name, value in zip(self.grouping.names, logits, strict=True):
            if not np.isfinite(value):
                kind = "source" if self.grouping.is_trivial else "group"
                raise NonFiniteError(
                    f"outer step {self.outer_steps}: the logit of {kind} {name} would become "
                    f"{value}; lower mixture.lr, and resume from the last checkpoint"
                )
        self._y = logits

    def _keep_bounds(self) -> None:
        """Moves y so that the weights lie within their bounds; leaves it bit for bit where they
        do."""
        weights = self.logit_weights
        if self._nested is None:
            projected = project_onto_bounds(weights, self._lower, self._upper)
        else:
            assert self.groups is not None
            projected = project_onto_nested_bounds(
                weights, self._lower, self._upper, self.groups.members, *self._nested
            )
        if projected is not weights:
            moved = self._y + safe_log(projected) - safe_log(weights)
            # A weight that had underflowed says less than its logit; a bound that raises it is all.
            tiny = np.finfo(np.float64).tiny
            raised = (weights < tiny) & (projected > np.sqrt(tiny))
            highest = self._y.max()
            total = highest + np.log(np.exp(self._y - highest).sum())
            self._y = np.where(raised, safe_log(projected) + total, moved)

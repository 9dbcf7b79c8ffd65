"""The mixture that a run asks for: weights by sample, and where each source lies."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_fastmix.blend.source_paths import match_sources
from megatron_fastmix.blend.weight_schedule import Change, WeightSchedule, read_schedule
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.megatron.options import RunOptions
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.rounding import written_weights

logger = logging.getLogger(__name__)

_ROUNDING = 1e-3
"""Weights of a blend file are rounded, to three decimals at least."""
_RELATIVE = 0.1
"""Of many sources each has less than that; then it is this part of the mean weight."""


@dataclass(frozen=True, kw_only=True)
class RunMixture:
    """What the flags ask for."""

    schedule: WeightSchedule
    """Weights from sample 0 on; one entry for a mixture that does not change."""
    paths: dict[str, tuple[str, ...]]
    """Prefixes, folders or patterns by source."""

    def matched(self, prefixes: Sequence[str]) -> RunMixture:
        """The mixture of the blend's datasets, without sources that have no dataset and never a
        weight that a blend file writes. Raises `DataError` that names every other difference."""
        found = match_sources(self.paths, prefixes, optional=self._idle())
        return self._of({name: tuple(prefixes[i] for i in ns) for name, ns in found.items()})

    def drawn(self) -> tuple[RunMixture, dict[str, tuple[str, ...]]]:
        """The mixture without the sources that never have a weight that a blend file writes, and
        the paths of those: what there is to match before the blend's datasets are known."""
        idle = self._idle()
        return (
            self._of({name: paths for name, paths in self.paths.items() if name not in idle}),
            {name: paths for name, paths in self.paths.items() if name in idle},
        )

    def _idle(self) -> set[str]:
        written = [written_weights(change.weights) for change in self.schedule.changes]
        return {n for n in self.schedule.names if all(n not in each for each in written)}

    def _of(self, paths: dict[str, tuple[str, ...]]) -> RunMixture:
        """The mixture of the sources of `paths`."""
        changes = tuple(
            Change(at_sample=c.at_sample, weights={n: c.weights[n] for n in paths})
            for c in self.schedule.changes
        )
        return RunMixture(schedule=WeightSchedule(changes=changes), paths=paths)


def other_weights(
    mixture: RunMixture, blend: Sequence[str], weights: Sequence[float]
) -> str | None:
    """What to say where the blend's weights are none of the mixture's, such as those that an export
    has corrected; None where they agree or are all alike, as placeholders are."""
    if len(set(weights)) == 1:
        return None
    total, given = math.fsum(weights), dict(zip(blend, weights, strict=True))
    first = mixture.schedule.changes[0].weights
    whole = math.fsum(first.values())
    differences = {
        name: (math.fsum(given[path] for path in mixture.paths[name]) / total, weight / whole)
        for name, weight in first.items()
    }
    worst = max(differences, key=lambda name: abs(differences[name][0] - differences[name][1]))
    theirs, ours = differences[worst]
    if abs(theirs - ours) < min(_ROUNDING, _RELATIVE / len(first)):
        return None
    if len(mixture.schedule.changes) > 1:
        return (
            f"the weights of --data-path do not count ({worst} {theirs:.4f} there, {ours:.4f} at "
            "the start of the schedule)"
        )
    return (
        f"the weights of --data-path do not count ({worst} {theirs:.4f} there, {ours:.4f} in the "
        "mixture): what export has corrected is in its blend alone; run without fastmix to use it, "
        "or write it as --fastmix-schedule"
    )


def read_run_mixture(options: RunOptions, *, rows: bool = False) -> RunMixture:
    """Reads the files that the flags name. `rows`: the run draws rows, as Megatron's `--sft` does.

    Raises `DataError` for what cannot be read, and `ConfigError` for files that do not go together.
    """
    learned = read_mixture(options.mixture) if options.mixture is not None else None
    if learned is not None and not learned.complete:
        logger.warning(
            "%s: the search stopped after %d steps; what it has learned so far is used",
            options.mixture,
            learned.steps,
        )
    paths: dict[str, tuple[str, ...]] = {}
    if learned is not None:
        paths = {s.name: s.prefixes for s in learned.sources}
    if options.schedule is not None:
        schedule = read_schedule(options.schedule)
    else:
        assert learned is not None
        weights = _weights(learned, rows)
        schedule = WeightSchedule(changes=(Change(at_sample=0, weights=weights),))
    caps = options.max_epochs if isinstance(options.max_epochs, Mapping) else {}
    for flag, given in (("--fastmix-source", options.sources), ("--fastmix-max-epochs", caps)):
        strangers = [name for name in given if name not in schedule.names]
        if strangers:
            raise ConfigError(
                f"{flag} {strangers[0]}: no such source; the mixture has "
                f"{', '.join(schedule.names)}"
            )
    paths.update(options.sources)
    missing = [name for name in schedule.names if name not in paths]
    if missing:
        where = options.mixture or "no --fastmix-mixture"
        raise ConfigError(
            f"{options.schedule}: {', '.join(missing)}: no path known ({where}); give each as "
            "--fastmix-source NAME=PATH"
        )
    return RunMixture(schedule=schedule, paths={name: paths[name] for name in schedule.names})


def _weights(learned: LearnedMixture, rows: bool) -> dict[str, float]:
    """Shares of what the run draws: samples of text, or answer-only rows."""
    if learned.mixed or (learned.answer_only and not rows):
        raise ConfigError(
            "--fastmix-mixture: its sources are text and answer-only rows, and Megatron's own "
            "training reads one kind in a run; give a mixture of one kind"
            if learned.mixed
            else f"--fastmix-mixture: its weights are {learned.weights_are}, and this run draws "
            "samples of --seq-length tokens; add --sft, or learn a mixture of text"
        )
    return learned.shares("samples")

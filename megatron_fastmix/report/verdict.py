"""How sure a result is: whether its mixture is told from uniform, and what speaks against it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from megatron_fastmix.mixture.optimality import Evidence, Optimality, Status, judge_optimality
from megatron_fastmix.report.run_record import RunRecord
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.over_seeds import average
from megatron_fastmix.result.rounding import default_decimals

Level = Literal["good", "fair", "poor"]
CLEAR = 3.0
"""Distances this many spreads wide are called clear."""
NOISE = 1.0
"""Standard error of the products over their spread between sources, above which they are noise."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that makes the mixture more or less sure."""

    level: Level
    text: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The learned mixture of one run, or of several repeats of it."""

    mixture: LearnedMixture | None
    """That of mixture.json, averaged where there are several; None before the first checkpoint."""
    findings: list[Finding]

    @property
    def level(self) -> Level:
        """The worst of the findings."""
        levels = [finding.level for finding in self.findings]
        return "poor" if "poor" in levels else "fair" if "fair" in levels else "good"


def are_repeats(runs: Sequence[RunRecord]) -> bool:
    """Whether the runs are the same search with other seeds, so that they may be averaged; the same
    seed again tells nothing of the spread."""
    first, seeds = runs[0], [run.seed for run in runs if run.seed is not None]
    return len(set(seeds)) == len(seeds) and all(
        run.sources == first.sources
        and run.targets == first.targets
        and _setting(run.config) == _setting(first.config)
        for run in runs[1:]
    )


def judge(runs: Sequence[RunRecord]) -> Verdict:
    """The verdict on repeats of one search (or on a single run)."""
    found = [run.mixture for run in runs if run.mixture is not None]
    mixture = average(found) if found else None
    one = len(found) < 2
    findings = [
        _progress(runs),
        mixture and _against_uniform(mixture, settled=all(map(_is_settled, runs))),
        *(_rest(run, named=len(runs) > 1) for run in runs),
        _noise(runs),
        _one_seed() if one else None,
        *(Finding(level="fair", text=f"{each}.") for each in _warnings(runs)),
    ]
    return Verdict(mixture=mixture, findings=[finding for finding in findings if finding])


def _warnings(runs: Sequence[RunRecord]) -> list[str]:
    """Once each, since repeats have the same."""
    found = dict.fromkeys(text for run in runs for text in run.warnings)
    return [text[0].upper() + text[1:] for text in found]


def _setting(config: dict[str, Any]) -> dict[str, Any]:
    """What moves the result, beside the seed."""
    return {key: v for key, v in config.items() if key not in ("seed", "run_dir", "output")}


def _progress(runs: Sequence[RunRecord]) -> Finding | None:
    if all(run.complete for run in runs):
        return None
    if not any(run.outer for run in runs):
        return Finding(level="poor", text="No outer step has been taken: this is the start.")
    state = "stopped" if all(run.ended for run in runs) else "not finished"
    shares = [run.step / run.train_iters for run in runs if run.train_iters]
    done = f": {min(shares):.0%} of its steps are done" if shares else ""
    return Finding(level="fair", text=f"The search is {state}{done}.")


def _is_settled(run: RunRecord) -> bool:
    found = optimality(run)
    return found is None or found.status == "settled"


def _against_uniform(mixture: LearnedMixture, *, settled: bool) -> Finding | None:
    if len(mixture.sources) < 2:
        return None
    distance, width = mixture.from_uniform()
    repeats = len(mixture.seeds)
    of_what = f"over {repeats} seeds" if repeats else "over the averaged part of the run"
    places = default_decimals(len(mixture.sources)) - 1
    figures = (
        f"{distance:.{places}f} from uniform on average, and {width:.{places}f} of spread {of_what}"
    )
    if distance <= width:
        return Finding(level="poor", text=f"Not told from a uniform mixture: {figures}.")
    if distance < CLEAR * width:
        return Finding(level="fair", text=f"Barely told from a uniform mixture: {figures}.")
    if not settled:
        return Finding(level="fair", text=f"Away from uniform, but not yet at rest: {figures}.")
    return Finding(level="good", text=f"Clearly not a uniform mixture: {figures}.")


def optimality(run: RunRecord) -> Optimality | None:
    """Whether the averaged part of a run is at an optimum; None where advantages were not logged,
    by earlier releases."""
    if run.mixture is not None and run.mixture.groups:
        return _of_groups(run.mixture)
    advantage = run.by_source("advantage")
    if not np.isfinite(advantage).any():
        return None
    count = len(run.tail)
    lower, upper = run.bounds()
    return judge_optimality(
        run.sources,
        advantage[-count:],
        run.weights_before()[-count:],
        outer_steps=len(run.outer),
        lower=lower,
        upper=upper,
    )


def _of_groups(mixture: LearnedMixture) -> Optimality | None:
    """That of the result: the advantages of sources in a group whose shares inside are fixed, or
    that is at a bound of its own, need not be 0, and the metrics do not tell which."""
    found, nan = mixture.optimality, float("nan")
    if found is None:
        return None
    pairs = [(g.advantage, g.advantage_standard_error) for g in mixture.groups]
    return Optimality(
        status=cast(Status, found.status),
        advantage=tuple(nan if mean is None else mean for mean, _ in pairs),
        standard_error=tuple(nan if error is None else error for _, error in pairs),
        text=found.text,
    )


def _rest(run: RunRecord, *, named: bool) -> Finding | None:
    """Every seed is judged by itself: their mean does not settle what one of them has not."""
    found = optimality(run)
    if found is None:
        return None if named else _movement(run)
    who = f"Seed {run.seed}: " if named else ""
    levels: dict[Status, Level] = {"settled": "good", "too_short": "poor"}
    return Finding(level=levels.get(found.status, "fair"), text=who + found.text)


def _movement(run: RunRecord) -> Finding | None:
    tail = run.tail
    if len(tail) < 4:
        return None
    half = len(tail) // 2
    moves = {}
    for name in run.sources:
        before = statistics.fmean(w[name] for w in tail[:half])
        after = statistics.fmean(w[name] for w in tail[half:])
        moves[name] = after - before
    name = max(moves, key=lambda source: abs(moves[source]))
    if abs(moves[name]) < 0.01:
        return Finding(level="good", text="Settled: no weight still moves by 0.01 or more.")
    return Finding(
        level="fair",
        text=f"Still moving: {name} changed by {moves[name]:+.3f} between the halves of the "
        "averaged part; a longer search may end elsewhere.",
    )


def _noise(runs: Sequence[RunRecord]) -> Finding | None:
    ratios = [
        value
        for run in runs
        for _, value in run.figure("outer", "noise_to_signal")[-len(run.tail) :]
    ]
    if not ratios:
        return None
    ratio = statistics.median(ratios)
    text = (
        f"Single estimates in the averaged part have a standard error of {ratio:.2f} times the "
        "spread between sources (median)"
    )
    if ratio > NOISE and any(map(_tells_sources_apart, runs)):
        # At an optimum the gains of all sources are equal, and single estimates show it.
        return Finding(
            level="good", text=f"{text}; those of the whole run together tell sources apart."
        )
    if ratio > NOISE:
        return Finding(level="fair", text=f"{text}: noise, unless many are averaged.")
    return Finding(level="good", text=f"{text}.")


def _tells_sources_apart(run: RunRecord) -> bool:
    """As in the search's own warning."""
    evidence = Evidence(len(run.sources))
    steps = zip(run.by_source("advantage"), run.by_source("advantage_standard_error"), strict=True)
    for advantage, error in steps:
        evidence.add(advantage, error)
    return evidence.tells_apart


def _one_seed() -> Finding:
    return Finding(
        level="fair",
        text="One seed: another may learn other weights; the spread does not tell (search "
        "--seeds 3 does).",
    )

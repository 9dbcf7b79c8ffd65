"""The mixtures that are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_fastmix.blend.weight_schedule import WeightSchedule
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.result.rounding import written_weights

KINDS = ("learned", "blend", "uniform", "proportional", "single", "random")
REPEATED = ("learned", "blend", "uniform", "proportional")
"""Kinds that are trained with several seeds."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One mixture."""

    name: str
    """Such as uniform, single:python, random:3."""
    kind: str
    """One of `KINDS`, or the method that found it."""
    weights: dict[str, str]
    """Source to decimal text above 0, as the exported blend file has it; the sum is 1."""
    search_flops: float = 0.0
    """What finding it cost, in floating-point operations."""
    schedule: WeightSchedule | None = None
    """Weights that change during the training, of which `weights` are then the mean; None for a
    static mixture."""

    @property
    def schedule_key(self) -> str:
        """A short hash of the schedule; empty for a static mixture."""
        if self.schedule is None:
            return ""
        changes = [(change.at_sample, dict(change.weights)) for change in self.schedule.changes]
        return _hash(changes)

    @property
    def key(self) -> str:
        """That of `mixture_key`."""
        return mixture_key(self.kind, self.weights, self.schedule_key)


def mixture_key(kind: str, weights: Mapping[str, str], schedule_key: str) -> str:
    """A file name's stem: kind and weights, not the name, which may depend on other flags."""
    return f"{kind}-{_hash([weights, schedule_key] if schedule_key else weights)}"


def _hash(values: object) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_candidates(
    tokens: Mapping[str, int],
    learned: Mapping[str, tuple[Mapping[str, float], float]],
    *,
    random_draws: int,
    draw_seed: int,
    blends: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Candidate]:
    """Every mixture of a comparison.

    `tokens` by source; `learned` by name: weights and search FLOPs; `blends` by name: weights of
    the user's own, such as an export with caps. Weights are rounded to four
    places and zeros left out, as the exporter does, so that each mixture is one that a user could
    hand to Megatron.
    """
    count, total = len(tokens), sum(tokens.values())
    candidates = [
        _candidate(name, "learned", weights, flops) for name, (weights, flops) in learned.items()
    ]
    candidates += [
        _candidate(f"blend:{name}", "blend", weights) for name, weights in (blends or {}).items()
    ]
    candidates.append(_candidate("uniform", "uniform", dict.fromkeys(tokens, 1 / count)))
    shares = {name: number / total for name, number in tokens.items()}
    candidates.append(_candidate("proportional", "proportional", shares))
    candidates += [_candidate(f"single:{name}", "single", {name: 1.0}) for name in tokens]
    for draw in range(random_draws):
        weights = np.random.default_rng([draw_seed, draw]).dirichlet(np.ones(count))
        drawn = dict(zip(tokens, weights.tolist(), strict=True))
        candidates.append(_candidate(f"random:{draw}", "random", drawn))
    return candidates


def select(candidates: Sequence[Candidate], only: Sequence[str]) -> list[Candidate]:
    """Those whose kind or name is in `only`; all where it is empty. Raises `ConfigError`."""
    valid = {*KINDS, *(candidate.name for candidate in candidates)}
    for name in only:
        if name not in valid:
            raise ConfigError(
                f"--only: found {name!r}; choose among {', '.join(KINDS)}, or one mixture among "
                f"{', '.join(candidate.name for candidate in candidates)}"
            )
    return [c for c in candidates if not only or c.kind in only or c.name in only]


def _candidate(
    name: str, kind: str, weights: Mapping[str, float], search_flops: float = 0.0
) -> Candidate:
    written = written_weights(weights)
    return Candidate(name=name, kind=kind, weights=written, search_flops=search_flops)

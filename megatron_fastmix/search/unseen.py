"""What a search tells of sources, or groups, that its probes hold no sample of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_fastmix.text_list import listed

MOST_NAMED = 3
"""Names in a sentence."""


class Unseen:
    """Counts the outer steps without evidence for what has a logit, whose logit stays then.

    A probe that is meant to hold every source says each that it lacks once; of a drawn one, which
    lacks many by design, that is said once for all. `total` has the numbers.
    """

    def __init__(self, names: Sequence[str], drawn: int | None) -> None:
        """`names` are those of the G logits; `drawn` the samples of a drawn probe."""
        self._names = list(names)
        self._drawn = drawn
        self._times = np.zeros(len(self._names), dtype=int)
        self._steps = 0

    def step(self, seen: np.ndarray) -> str | None:
        """What is to be said after an outer step with evidence for `seen`, bool (G,)."""
        told = self._times > 0
        first_time = not told.any()
        self._times += ~seen
        self._steps += 1
        new = [self._names[g] for g in np.flatnonzero(~seen & ~told)]
        if not new or (self._drawn is not None and not first_time):
            return None
        if self._drawn is not None:
            return (
                f"a probe of {self._drawn} samples has none of {len(new)} of {len(self._names)} "
                f"in a step, now {listed(new, MOST_NAMED)}; their logits stay for that step"
            )
        stay = "its logit stays" if len(new) == 1 else "their logits stay"
        return (
            f"the probe held no sample of {listed(new, MOST_NAMED)}; {stay} in such a step, and "
            "the end says how often"
        )

    def total(self) -> str | None:
        """What is to be said at the end: of a probe that is meant to hold all, how often it lacked
        which; of a drawn one, what none of its steps has seen."""
        if self._drawn is not None:
            never = [self._names[g] for g in np.flatnonzero(self._times == self._steps)]
            if not never or not self._steps:
                return None
            return (
                f"none of {self._steps} probes of {self._drawn} samples held one of "
                f"{listed(never, MOST_NAMED)}; raise hypergradient.probe_samples"
            )
        order = np.argsort(-self._times, kind="stable")
        each = [f"{self._names[g]} in {self._times[g]}" for g in order if self._times[g]]
        if not each:
            return None
        lacked = listed(each, MOST_NAMED)
        return f"of {self._steps} outer steps the probe held no sample of {lacked}"

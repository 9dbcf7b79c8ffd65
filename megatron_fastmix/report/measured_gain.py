"""What a comparison in the run folder measured: target models trained on the mixtures.

`compare-mixtures --output RUN/NAME` leaves rows there. A row of the learned mixture counts where
its weights are those of the result: a comparison of an earlier part of the search does not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_fastmix.report.predicted_gain import Gain
from megatron_fastmix.report.run_record import is_number
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.rounding import written_weights
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.text_files import decode_text, parse_json, read_bytes


class Measurements:
    """The trainings of target models that lie in a run folder, by weights."""

    def __init__(self, folder: Path) -> None:
        """Reads them; damaged lines are passed over."""
        self._losses: dict[tuple[str, tuple[tuple[str, str], ...]], dict[int, float]] = {}
        for path in RunFolder(folder).comparisons:
            for line in read_bytes(path, "the rows of a comparison").splitlines():
                self._take(line)

    def gain(self, mixture: LearnedMixture, other: Mapping[str, float]) -> Gain | None:
        """How much lower the test loss is on `mixture` than on `other`, nats per token: the mean of
        the differences at equal seeds, with the standard error over the seeds; None where nothing
        was trained on one of them. Of several comparisons the one of most seeds counts, and of
        those the last."""
        found: list[float] = []
        for setting in dict.fromkeys(setting for setting, _ in self._losses):
            here = self._losses.get((setting, _key(mixture.weights)), {})
            there = self._losses.get((setting, _key(other)), {})
            changes = [there[seed] - here[seed] for seed in here if seed in there]
            found = changes if len(changes) >= len(found) else found
        if not found:
            return None
        value, freedom = statistics.fmean(found), len(found) - 1
        if freedom == 0:
            return Gain(value=value, error=None)
        error = statistics.stdev(found) / math.sqrt(len(found))
        return Gain(value=value, error=error, freedom=freedom)

    def _take(self, line: bytes) -> None:
        try:
            row: Any = parse_json(decode_text(line))
        except ValueError:
            return
        if not isinstance(row, dict) or row.get("record") != "training":
            return
        weights, seed, loss = row.get("weights"), row.get("seed"), row.get("loss")
        if isinstance(weights, dict) and isinstance(seed, int) and is_number(loss):
            place = (str(row.get("setting")), tuple(sorted(weights.items())))
            self._losses.setdefault(place, {})[seed] = loss


def _key(weights: Mapping[str, float]) -> tuple[tuple[str, str], ...]:
    """As the rows have them."""
    return tuple(sorted(written_weights(weights).items()))

"""A search's mixture, read as a history of weights by training sample."""

from __future__ import annotations

import numpy as np

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.mixture.mixture import Mixture


class FollowedMixture:
    """The weights of outer step j hold from sample j·samples_per_update on.

    Without `samples_per_update` the weights of the moment are those of every sample. It lives in
    one process: workers of a DataLoader keep the weights of the moment they started.
    """

    def __init__(self, mixture: Mixture, samples_per_update: int | None, block_size: int) -> None:
        """Raises `ConfigError` unless updates fall on block boundaries."""
        if samples_per_update is not None and (
            samples_per_update < 1 or samples_per_update % block_size
        ):
            raise ConfigError(
                f"samples_per_update: found {samples_per_update}; use a multiple of the block "
                f"size {block_size}"
            )
        self.names = mixture.names
        self.block_size = block_size
        self._mixture = mixture
        self._samples_per_update = samples_per_update

    @property
    def counter(self) -> tuple[int]:
        """Its element is another number after every change of the history."""
        return (self._mixture.generation << 32 | len(self._mixture.history),)

    def changes(self, since: int = 0) -> list[tuple[int, np.ndarray]]:
        """(first sample, weights (K,)) of every outer step from that of number `since` on."""
        each = self._samples_per_update or 0
        return [(j * each, w) for j, w in enumerate(self._mixture.history[since:], start=since)]

    def loss_weights_at(self, sample: int) -> np.ndarray:
        """K times the weights in force at a training sample, (K,)."""
        history = self._mixture.history
        each = self._samples_per_update
        step = len(history) - 1 if each is None else min(sample // each, len(history) - 1)
        return len(self.names) * history[step]

    def note_drawn(self, sample: int) -> int:
        """Nothing to note: the search itself keeps its steps and its draws in order."""
        return 1 << 62

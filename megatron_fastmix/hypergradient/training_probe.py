"""The products of `one_pass` out of the training itself.

A training batch's backward pass gives ∂L/∂y of every module for the loss L = Σ_b c_b·ℓ_b that is
trained on. The shares of sample b therefore carry its factor c_b = ∂L/∂ℓ_b, which is read off the
same backward pass and divided out. Forward and backward pass are the training's own; what is added
is the local products, as much arithmetic as one more forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.hypergradient.one_pass import OnePass, Pass
from megatron_fastmix.hypergradient.products import SampleProducts
from megatron_fastmix.parallel.parameters import Vector

FAINTEST = 1e-6
"""Samples whose loss counts less beside the mean one, K·α_k, are left out: their gradients may be
lost in training, and are not to be divided by that."""


class TrainingProbe:
    """Watches the micro-batches of one optimizer step, all at the same θ."""

    def __init__(self, estimator: OnePass, vectors: Sequence[Vector]) -> None:
        """`vectors` are the v at that θ."""
        self.estimator = estimator
        self.vectors = vectors
        self._passes: list[tuple[Pass, list[torch.Tensor]]] = []

    @contextlib.contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        """While the forward pass of a micro-batch runs. Its backward pass is to follow, with every
        rank's: under ZeRO-3 a module's v is gathered in it."""
        of_batch = Pass(self.estimator, batch, self.vectors, weights_are_frozen=False)
        with of_batch.watching():
            yield
        of_batch.check_all_called()
        self._passes.append((of_batch, []))

    def losses(self, losses: torch.Tensor) -> None:
        """Takes the losses (B,) that the forward pass gave, before their backward pass."""
        losses.register_hook(self._passes[-1][1].append)

    def products(self, loss_weights: np.ndarray) -> list[SampleProducts]:
        """⟨v, ∇ℓ_b⟩ for each v, of the samples of all passes but the faintest; `loss_weights` are
        those of the step, (K,). Every rank must call, once, after the last backward pass."""
        found: list[np.ndarray] = []
        sources: list[np.ndarray] = []
        for of_batch, (factors,) in self._passes:
            source = of_batch.batch.index
            kept = loss_weights[source] > FAINTEST
            products = of_batch.sums()[:, kept] / factors.double().cpu().numpy()[kept]
            found.append(products)
            sources.append(source[kept])
        source = np.concatenate(sources)
        return [
            SampleProducts(values=values, source=source, samples=np.ones(len(source)))
            for values in np.concatenate(found, axis=1)
        ]

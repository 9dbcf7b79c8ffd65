"""Exact inner products: one backward pass per source. The reference, and the way in bf16."""

from __future__ import annotations

import numpy as np
import torch

from megatron_fastmix.hypergradient.problem import OnLosses, OuterProblem, Products
from megatron_fastmix.parallel.parameters import Parameters


def per_source(problem: OuterProblem, on_losses: OnLosses | None = None) -> Products:
    """⟨v, ∇L_k⟩ by automatic differentiation, over all parameters. Every rank must call."""
    return inner_products(problem, problem.parameters, on_losses)


def inner_products(
    problem: OuterProblem, parameters: Parameters, on_losses: OnLosses | None
) -> Products:
    """⟨v, ∇L_k⟩ over `parameters`: K backward passes per probe batch. Every rank must call."""
    v = problem.objective_gradient(parameters, on_losses)
    # Two halves of the probe, for the standard error; then products and samples of each source.
    sums = np.zeros((2, 2, problem.num_sources))
    for number, batch in enumerate(problem.probe):
        half = sums[number % 2]
        for source in range(problem.num_sources):
            mine = batch.group == source
            # Also without a sample of it: under ZeRO-3 the pass is collective.
            loss = problem.losses(batch)[torch.from_numpy(mine)].sum()
            received: list[torch.Tensor] = []

            def receive(
                i: int, gradient: torch.Tensor, received: list[torch.Tensor] = received
            ) -> None:
                received.append(parameters.dot(i, gradient, v[i]))

            parameters.each_gradient(loss, receive)
            half[0, source] += float(torch.stack(received).sum())
            half[1, source] += mine.sum()
    parameters.release()
    sums = problem.group.sum(sums)
    products, counts = sums[:, 0], sums[:, 1]
    if parameters.tensor_group is not None:
        products = parameters.tensor_group.sum(products)
    first, second = products / np.where(counts, counts, np.nan)
    share = counts[0] * counts[1] / np.maximum(counts.sum(axis=0), 1) ** 2
    return Products(
        values=products.sum(axis=0) / np.maximum(counts.sum(axis=0), 1),
        counts=counts.sum(axis=0),
        standard_error=np.abs(first - second) * np.sqrt(share),
    )

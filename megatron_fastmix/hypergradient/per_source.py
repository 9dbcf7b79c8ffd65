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
    sums = np.zeros((2, problem.num_sources))
    for batch in problem.probe:
        for source in range(problem.num_sources):
            mine = batch.group == source
            # Also without a sample of it: under ZeRO-3 the pass is collective.
            loss = problem.losses(batch)[torch.from_numpy(mine)].sum()
            received: list[torch.Tensor] = []

            def receive(
                i: int, gradient: torch.Tensor, received: list[torch.Tensor] = received
            ) -> None:
                received.append((gradient.double() * v[i]).sum())

            parameters.each_gradient(loss, receive)
            sums[0, source] += float(torch.stack(received).sum())
            sums[1, source] += mine.sum()
    total, counts = problem.group.sum(sums)
    return Products(values=total / np.maximum(counts, 1), counts=counts, standard_error=None)

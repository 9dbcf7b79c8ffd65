"""All K inner products from two forward passes: the cost does not depend on K."""

from __future__ import annotations

import numpy as np
import torch

from megatron_fastmix.hypergradient.problem import OnLosses, OuterProblem, Products


def finite_difference(problem: OuterProblem, on_losses: OnLosses | None = None) -> Products:
    """⟨v, ∇L_k⟩ = [L_k(θ + εv) − L_k(θ − εv)] / 2ε with ε = r·‖θ‖/‖v‖, over all parameters.

    Per-sample losses of one probe batch are differenced and then summed by source, so that each
    product also gets a standard error. Every rank must call.
    """
    parameters = problem.parameters
    v = problem.objective_gradient(parameters, on_losses)
    norm = parameters.norm(v)
    if norm == 0 or not np.isfinite(norm):
        # Zero: no direction to differ along. NaN or Inf: the caller reports the products.
        epsilon = float("nan") if norm else 1.0
    else:
        epsilon = problem.relative_step * parameters.norm(parameters.local()) / norm
    with torch.no_grad(), parameters.perturbed_both_ways(v, epsilon) as mirror:
        ahead = [problem.losses(batch) for batch in problem.probe]
        mirror()
        behind = [problem.losses(batch) for batch in problem.probe]

    sums = np.zeros((3, problem.num_sources))
    for batch, high, low in zip(problem.probe, ahead, behind, strict=True):
        per_sample = ((high - low) / (2 * epsilon)).cpu().numpy()
        real = batch.group >= 0
        source, slope = batch.group[real], per_sample[real]
        for row, value in zip(sums, (slope, slope**2, np.ones_like(slope)), strict=True):
            np.add.at(row, source, value)
    total, squares, counts = problem.group.sum(sums)
    samples = np.maximum(counts, 1)
    mean = total / samples
    variance = np.maximum(squares / samples - mean**2, 0) / np.maximum(samples - 1, 1)
    error = np.where(counts > 1, np.sqrt(variance), np.nan)
    return Products(values=mean, counts=counts, standard_error=error)

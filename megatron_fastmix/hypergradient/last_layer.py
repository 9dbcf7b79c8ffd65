"""Inner products over the output layer alone, as the published experiments compute them."""

from __future__ import annotations

from megatron_fastmix.hypergradient.per_source import inner_products
from megatron_fastmix.hypergradient.problem import OnLosses, OuterProblem, Products


def last_layer(problem: OuterProblem, on_losses: OnLosses | None = None) -> Products:
    """⟨v, ∇L_k⟩ over the parameters that are marked `is_output_layer`. Every rank must call."""
    output = problem.parameters.subset(lambda p: getattr(p, "is_output_layer", False))
    assert output.parameters, "no parameter is marked as the output layer"
    return inner_products(problem, output, on_losses)

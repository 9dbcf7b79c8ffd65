"""What the mixture is to lower: ways to weigh several targets, one file each and one registry, and
the regularizer."""

from __future__ import annotations

from megatron_fastmix.mixture.objective.aggregation import TargetAggregation
from megatron_fastmix.mixture.objective.least_gain import LeastGain
from megatron_fastmix.mixture.objective.regularizer import regularizer_gradient
from megatron_fastmix.mixture.objective.worst_case import WorstCase

# `ObjectiveConfig.target_aggregation` names the same.
AGGREGATIONS: dict[str, type[TargetAggregation]] = {
    "mean": TargetAggregation,
    "worst_case": WorstCase,
    "least_gain": LeastGain,
}

__all__ = ["AGGREGATIONS", "TargetAggregation", "regularizer_gradient"]

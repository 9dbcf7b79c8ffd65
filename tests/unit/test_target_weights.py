"""The weights of several targets."""

import numpy as np
import pytest

from megatron_fastmix.config import ObjectiveConfig
from megatron_fastmix.mixture.objective.target_weights import TargetWeights


def test_mean_keeps_the_weights():
    weights = TargetWeights([0.7, 0.3], [0.0, 0.0], ObjectiveConfig())
    weights.update(np.array([1.0, 9.0]))
    assert weights.values.tolist() == [0.7, 0.3]


def test_worst_case_multiplies_by_the_exponential_of_the_excess():
    config = ObjectiveConfig(target_aggregation="worst_case", target_lr=0.5)
    weights = TargetWeights([0.7, 0.2, 0.1], [2.0, 0.0, 1.0], config)
    losses = np.array([3.0, 2.5, 1.0])
    weights.update(losses)
    expected = np.array([0.7, 0.2, 0.1]) * np.exp(0.5 * (losses - [2.0, 0.0, 1.0]))
    np.testing.assert_allclose(weights.values, expected / expected.sum())


def test_a_target_that_is_always_worst_takes_all_the_weight():
    config = ObjectiveConfig(target_aggregation="worst_case", target_lr=1.0)
    weights = TargetWeights([0.5, 0.5, 0.0], [0.0, 0.0, 0.0], config)
    for _ in range(100):
        weights.update(np.array([2.0, 3.0, 1.0]))
    assert weights.values[1] == pytest.approx(1.0)
    assert weights.values.sum() == pytest.approx(1.0)

"""The weights of several targets."""

import typing

import numpy as np
import pytest

from megatron_fastmix.config import ObjectiveConfig
from megatron_fastmix.mixture.objective import AGGREGATIONS


def test_mean_keeps_the_weights():
    mean = AGGREGATIONS["mean"]([0.7, 0.3], [0.0, 0.0], ObjectiveConfig())
    mean.update(np.array([1.0, 9.0]))
    assert mean.weights.tolist() == [0.7, 0.3]


def test_worst_case_multiplies_by_the_exponential_of_the_excess():
    config = ObjectiveConfig(target_aggregation="worst_case", target_lr=0.5)
    targets = AGGREGATIONS["worst_case"]([0.7, 0.2, 0.1], [2.0, 0.0, 1.0], config)
    losses = np.array([3.0, 2.5, 1.0])
    targets.update(losses)
    expected = np.array([0.7, 0.2, 0.1]) * np.exp(0.5 * (losses - [2.0, 0.0, 1.0]))
    np.testing.assert_allclose(targets.weights, expected / expected.sum())


def test_a_target_that_is_always_worst_takes_all_the_weight():
    config = ObjectiveConfig(target_aggregation="worst_case", target_lr=1.0)
    targets = AGGREGATIONS["worst_case"]([0.5, 0.5, 0.0], [0.0, 0.0, 0.0], config)
    for _ in range(100):
        targets.update(np.array([2.0, 3.0, 1.0]))
    assert targets.weights[1] == pytest.approx(1.0)
    assert targets.weights.sum() == pytest.approx(1.0)


def test_the_configuration_names_the_registered_aggregations():
    choices = typing.get_type_hints(ObjectiveConfig)["target_aggregation"]
    assert set(typing.get_args(choices)) == AGGREGATIONS.keys()

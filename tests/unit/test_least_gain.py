"""The weights of targets of which none is to be sacrificed."""

import numpy as np
import pytest

from megatron_fastmix.config import ObjectiveConfig
from megatron_fastmix.mixture.objective.least_gain import LeastGain, least_gain_weights
from megatron_fastmix.mixture.simplex import softmax

UNIFORM = np.full(3, 1 / 3)


def bounds(products, weights, start, omega, step=0.5):
    """What α ahead of `omega` earns, min over v of g_v − KL(α‖α_t)/τ, and what ω allows at most,
    max over α of Σ_v ω_v·g_v − KL/τ: equal where both are the answers to each other, never
    crossed."""
    slopes = products - (products @ weights)[:, None]
    slopes /= np.sqrt(np.mean(slopes**2))
    ahead = softmax(np.log(weights) + step * (omega @ slopes))
    divergence = ahead @ np.log(ahead / weights) / step
    gains = slopes @ (ahead - start)
    return gains.min() - divergence, omega @ gains - divergence


@pytest.mark.parametrize(("targets", "sources"), [(3, 3), (3, 17), (20, 200)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_weights_are_those_of_the_saddle_point(targets, sources, scale):
    generator = np.random.default_rng(targets + sources)
    products = generator.normal(size=(targets, sources))
    products[0] *= scale
    weights, start = generator.dirichlet(np.full(sources, 3.0), 2)
    omega = least_gain_weights(products, weights, start)
    lower, upper = bounds(products, weights, start, omega)
    assert upper - lower < 1e-3
    for other in generator.dirichlet(np.full(targets, 0.5), 300):
        assert bounds(products, weights, start, other)[1] >= upper - 1e-3


def test_the_target_that_the_mixture_forgot_gets_the_weight():
    products = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    omega = least_gain_weights(products, np.array([0.8, 0.1, 0.1]), UNIFORM)
    assert omega[1] > 0.99
    even = least_gain_weights(products, np.array([0.4, 0.4, 0.2]), UNIFORM)
    np.testing.assert_allclose(even, [0.5, 0.5], atol=1e-6)


def test_neither_scale_nor_a_common_part_counts():
    generator = np.random.default_rng(0)
    products, weights = generator.normal(size=(3, 3)), np.array([0.5, 0.3, 0.2])
    omega = least_gain_weights(products, weights, UNIFORM)
    shifted = 1e-4 * (products + np.array([[5.0], [-3.0], [1.0]]))
    np.testing.assert_allclose(least_gain_weights(shifted, weights, UNIFORM), omega, atol=1e-6)


def test_targets_that_no_source_moves_share():
    flat = np.ones((4, 3))
    np.testing.assert_allclose(least_gain_weights(flat, UNIFORM, UNIFORM), np.full(4, 0.25))


def test_what_was_not_measured_is_not_zero():
    generator = np.random.default_rng(0)
    # Two targets alike but for their level, which is no gain.
    products = np.array([[1.0], [0.2]]) + 0.1 * generator.normal(size=(2, 40))
    uniform = np.full(40, 1 / 40)
    chooser = LeastGain([0.5, 0.5], [0.0, 0.0], ObjectiveConfig())
    for _ in range(8):
        seen = np.zeros(40, bool)
        seen[generator.choice(40, 8, replace=False)] = True
        found = chooser.choose(np.where(seen, products, 0.0), uniform, uniform, seen)
        alone = least_gain_weights(products[:, seen], np.full(8, 1 / 8), np.full(8, 1 / 8))
        np.testing.assert_allclose(found, alone)
    nothing = chooser.choose(np.zeros((2, 40)), uniform, uniform, np.zeros(40, bool))
    assert nothing.tolist() == [0.5, 0.5]


def test_one_target_takes_all():
    omega = least_gain_weights(np.array([[1.0, 2.0, 3.0]]), UNIFORM, UNIFORM)
    assert omega.tolist() == [1.0]

"""Mixture: softmax, hypergradient on the logits, Adam, averaging, state."""

import json

import numpy as np
import pytest
import torch

from megatron_fastmix.config import MixtureConfig
from megatron_fastmix.errors import CheckpointError
from megatron_fastmix.mixture import Mixture, logit_gradient, softmax


def test_logit_gradient_equals_autograd_of_the_linearised_objective():
    generator = np.random.default_rng(0)
    logits, products = generator.normal(size=5), generator.normal(size=5)
    z = torch.tensor(logits, requires_grad=True)
    alpha = torch.softmax(z, 0)
    entropy_weight, inner_lr = 0.3, 0.01
    # To first order, ℓ(θ − η Σ α_k ∇L_k) is −η Σ α_k ⟨v, ∇L_k⟩ plus a constant.
    loss = -inner_lr * alpha @ torch.tensor(products) + entropy_weight * (alpha @ alpha.log())
    (expected,) = torch.autograd.grad(loss, z)
    found = logit_gradient(products, softmax(logits), inner_lr, entropy_weight)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)


def test_positive_entropy_weight_raises_the_entropy():
    mixture = Mixture(["a", "b"], MixtureConfig(initial_weights=(0.9, 0.1)))
    for _ in range(8):
        mixture.update(logit_gradient(np.zeros(2), mixture.weights, 1.0, entropy_weight=1e-3))
    entropies = [-(weights @ np.log(weights)) for weights in mixture.history]
    assert entropies == sorted(entropies)
    assert entropies[-1] > entropies[0] + 0.1


def test_a_source_with_larger_product_gains_weight():
    mixture = Mixture(["good", "neutral", "bad"], MixtureConfig())
    for _ in range(5):
        mixture.update(logit_gradient(np.array([1.0, 0.0, -1.0]), mixture.weights, 1e-3))
    good, neutral, bad = mixture.weights
    assert good > neutral > bad


def test_an_unseen_source_keeps_its_logit_and_does_not_shift_the_others():
    seen = np.array([True, True, False])
    mixture = Mixture(["a", "b", "unseen"], MixtureConfig())
    gradient = logit_gradient(np.array([1.0, 3.0, 0.0]), mixture.weights, 1.0, seen=seen)
    before = mixture.logits.copy()
    mixture.update(gradient, seen)
    assert mixture.logits[2] == before[2]
    # Centred over the seen alone: equal and opposite.
    assert gradient[0] == pytest.approx(-gradient[1])
    assert mixture.state()["updates"] == [1, 1, 0]


def test_learning_rate_zero_freezes_the_logits_bitwise():
    mixture = Mixture(["a", "b"], MixtureConfig(lr=0.0, initial_weights=(0.3, 0.7)))
    before = mixture.logits.copy()
    mixture.update(np.array([1.0, -1.0]))
    assert mixture.logits.tobytes() == before.tobytes()


def test_the_average_is_over_the_stated_tail():
    mixture = Mixture(["a", "b"], MixtureConfig(averaging_fraction=0.5))
    for _ in range(10):
        mixture.update(np.array([1.0, -1.0]))
    mean, spread, count = mixture.averaged()
    tail = np.stack(mixture.history[-5:])
    assert count == 5
    np.testing.assert_array_equal(mean, tail.mean(axis=0))
    np.testing.assert_array_equal(spread, tail.std(axis=0))


def test_state_goes_through_json_bitwise():
    config = MixtureConfig()
    one = Mixture(["a", "b", "c"], config)
    for step in range(7):
        one.update(np.sin(np.arange(3) + step))
    two = Mixture(["a", "b", "c"], config)
    two.load_state(json.loads(json.dumps(one.state())))
    for mixture in (one, two):
        mixture.update(np.array([0.1, 0.2, -0.3]))
    assert one.logits.tobytes() == two.logits.tobytes()
    assert one.state() == two.state()


def test_a_state_of_other_sources_is_refused():
    state = Mixture(["a", "b"], MixtureConfig()).state()
    with pytest.raises(CheckpointError, match="same order"):
        Mixture(["b", "a"], MixtureConfig()).load_state(state)

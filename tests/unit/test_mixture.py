"""Mixture: hypergradient on the logits, regularizer, bounds, schedule, averaging, state."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_fastmix.blend.followed_mixture import FollowedMixture
from megatron_fastmix.config import MixtureConfig
from megatron_fastmix.errors import CheckpointError, NonFiniteError
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.mixture.objective import regularizer_gradient
from megatron_fastmix.mixture.outer_optimizer import OUTER_OPTIMIZERS, logit_gradient
from megatron_fastmix.mixture.simplex import project_onto_bounds, softmax


@pytest.mark.parametrize("prior", [None, (1.0, 2.0, 3.0, 4.0, 5.0)])
def test_the_gradient_equals_autograd_of_the_linearised_objective(prior):
    generator = np.random.default_rng(0)
    logits, products = generator.normal(size=5), generator.normal(size=5)
    z = torch.tensor(logits, requires_grad=True)
    alpha = torch.softmax(z, 0)
    entropy_weight, inner_lr = 0.3, 0.01
    shares = torch.ones(5) if prior is None else torch.tensor(prior, dtype=torch.float64) / 15
    # To first order, ℓ(θ − η Σ α_k ∇L_k) is −η Σ α_k ⟨v, ∇L_k⟩ plus a constant.
    loss = -inner_lr * alpha @ torch.tensor(products)
    loss += entropy_weight * (alpha @ (alpha / shares).log())
    (expected,) = torch.autograd.grad(loss, z)
    weights = softmax(logits)
    h = -inner_lr * products + regularizer_gradient(weights, entropy_weight, prior)
    found = logit_gradient(h, weights, np.ones(5, bool))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)


def test_positive_entropy_weight_raises_the_entropy():
    mixture = Mixture(["a", "b"], MixtureConfig(initial_weights=(0.9, 0.1)))
    for _ in range(8):
        mixture.update(regularizer_gradient(mixture.weights, 1e-3))
    entropies = [-(weights @ np.log(weights)) for weights in mixture.history]
    assert entropies == sorted(entropies)
    assert entropies[-1] > entropies[0] + 0.1


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        ("adam", 0.05),
        ("sgd", 2.0),
        ("mirror_descent", 0.5),
        ("scaled_mirror_descent", 0.01),
        ("mirror_adam", 0.02),
    ],
)
def test_a_prior_alone_draws_the_mixture_to_itself(optimizer, lr):
    mixture = Mixture(["a", "b", "c"], MixtureConfig(optimizer=optimizer, lr=lr))
    for _ in range(300):
        mixture.update(regularizer_gradient(mixture.weights, 1.0, (6.0, 3.0, 1.0)))
    np.testing.assert_allclose(mixture.weights, [0.6, 0.3, 0.1], atol=0.01)


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        ("adam", 0.1),
        ("sgd", 5.0),
        ("mirror_descent", 1.0),
        ("scaled_mirror_descent", 0.5),
        ("mirror_adam", 0.1),
    ],
)
def test_a_source_with_smaller_gradient_gains_weight(optimizer, lr):
    mixture = Mixture(["good", "neutral", "bad"], MixtureConfig(optimizer=optimizer, lr=lr))
    for _ in range(5):
        mixture.update(np.array([-1.0, 0.0, 1.0]))
    good, neutral, bad = mixture.weights
    assert good > neutral > bad


def test_mirror_descent_is_the_exponentiated_gradient():
    mixture = Mixture(
        ["a", "b", "c"],
        MixtureConfig(optimizer="mirror_descent", lr=0.7, initial_weights=(0.5, 0.3, 0.2)),
    )
    h = np.array([0.4, -0.2, 1.0])
    mixture.update(h)
    expected = np.array([0.5, 0.3, 0.2]) * np.exp(-0.7 * h)
    np.testing.assert_allclose(mixture.weights, expected / expected.sum(), rtol=1e-12)


def test_scaled_mirror_descent_forgets_the_scale_and_keeps_the_proportions():
    h = np.array([[0.4, -0.2, 1.0], [0.1, 0.3, -0.5]])
    config = MixtureConfig(optimizer="scaled_mirror_descent", lr=0.7, adam_beta2=0.9)
    found = []
    for scale in (1e-6, 1e3):
        mixture = Mixture(["a", "b", "c"], config)
        for step in h:
            mixture.update(scale * step)
        found.append(mixture.weights)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    # By hand: the first step has a root mean square of 1 in what moves z.
    first = Mixture(["a", "b", "c"], config)
    first.update(h[0])
    direction = h[0] - h[0].mean()
    moved = np.exp(-0.7 * direction / np.sqrt(np.mean(direction**2)))
    np.testing.assert_allclose(first.weights, moved / moved.sum(), rtol=1e-9)


@pytest.mark.parametrize("optimizer", sorted(OUTER_OPTIMIZERS))
def test_without_any_evidence_nothing_moves(optimizer):
    mixture = Mixture(["a", "b"], MixtureConfig(optimizer=optimizer))
    mixture.update(np.array([1.0, -1.0]), np.array([False, False]))
    assert mixture.weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("optimizer", sorted(OUTER_OPTIMIZERS))
def test_an_unseen_source_keeps_its_logit_and_does_not_shift_the_others(optimizer):
    seen = np.array([True, True, False])
    mixture = Mixture(["a", "b", "unseen"], MixtureConfig(optimizer=optimizer))
    before = mixture.logits.copy()
    gradient = np.array([1.0, 3.0, 100.0])
    centred = logit_gradient(gradient, mixture.weights, seen)
    assert centred.tolist() == pytest.approx([-1 / 3, 1 / 3, 0])
    mixture.update(gradient, seen)
    assert mixture.logits[2] == before[2]
    # Centred over the seen alone: equal and opposite.
    moved = mixture.logits - before
    assert moved[0] == pytest.approx(-moved[1])
    assert moved[0] > 0


@pytest.mark.parametrize("optimizer", sorted(OUTER_OPTIMIZERS))
def test_evidence_of_sources_that_have_underflowed_alone_is_survived(optimizer):
    config = MixtureConfig(optimizer=optimizer)
    mixture = Mixture(["a", "b", "c"], config)
    mixture.load_state(mixture.state() | {"logits": [0.0, -1000.0, -1001.0]})
    mixture.update(np.array([0.0, -1.0, 1.0]), np.array([False, True, True]))
    assert np.isfinite(mixture.logits).all()


def test_a_blend_that_begins_follows_the_weights_that_the_ranks_agreed_on():
    mixture = Mixture(["a", "b"], MixtureConfig())
    followed = FollowedMixture(mixture, 8, 8)
    before = followed.counter[0]
    mixture.agree(lambda values: values)
    assert followed.counter[0] == before
    mixture.agree(lambda values: np.nextafter(values, 1))
    assert followed.counter[0] != before


BOUNDS = st.integers(2, 6).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(0.0, 1.0 / k), min_size=k, max_size=k),
        st.lists(st.floats(1.0 / k, 1.0), min_size=k, max_size=k),
        st.lists(st.floats(-20, 20), min_size=k, max_size=k),
    )
)


@given(BOUNDS)
def test_the_projection_is_a_scaled_and_clipped_mixture(case):
    lower, upper, logits = map(np.array, case)
    weights = softmax(logits)
    projected = project_onto_bounds(weights, lower, upper)
    assert projected.sum() == pytest.approx(1, abs=1e-9)
    assert np.all(projected >= lower)
    assert np.all(projected <= upper)
    # Optimal in KL: sources inside their bounds keep their proportions; those at the lower bound
    # were raised by no less than that factor, those at the upper by no more.
    ratio = np.log(projected + 1e-300) - np.log(weights + 1e-300)
    inside = (projected > lower) & (projected < upper)
    if inside.any():
        assert np.ptp(ratio[inside]) < 1e-6
        factor = ratio[inside].mean()
        movable = lower < upper
        assert np.all(ratio[movable & (projected == lower)] >= factor - 1e-6)
        assert np.all(ratio[movable & (projected == upper)] <= factor + 1e-6)


@pytest.mark.parametrize("optimizer", sorted(OUTER_OPTIMIZERS))
def test_bounds_hold_at_every_step_and_for_the_average(optimizer):
    config = MixtureConfig(optimizer=optimizer, lr=1.0)
    bounds = ([0.1, 0.0, 0.05], [1.0, 0.6, 1.0])
    mixture = Mixture(["a", "b", "c"], config, bounds=bounds)
    for _ in range(40):
        mixture.update(np.array([1.0, -1.0, 0.5]))
    lower, upper = np.array(bounds)
    for weights in [*mixture.history, mixture.averaged()[0]]:
        assert np.all(weights >= lower - 1e-12)
        assert np.all(weights <= upper + 1e-12)
    assert mixture.weights[1] == pytest.approx(0.6)
    for _ in range(20):  # Adam's momentum turns first
        mixture.update(np.array([-5.0, 5.0, 0.0]))
    assert mixture.weights[1] < 0.5, "a bound must not hold a source that leaves it"


@pytest.mark.parametrize("bounds", [([0.1, 0.0, 0.0], [1.0] * 3), ([0.0] * 3, [1.0, 1.0, 0.7])])
def test_bounds_hold_where_a_logit_is_far_below_the_smallest_weight(bounds):
    mixture = Mixture(list("abc"), MixtureConfig(optimizer="sgd", lr=1e4), bounds=bounds)
    for _ in range(3):
        mixture.update(np.array([1.0, 0.9, -1.0]))
        assert np.all(mixture.weights >= np.array(bounds[0]) - 1e-12)
        assert np.all(mixture.weights <= np.array(bounds[1]) + 1e-12)


def test_the_learning_rate_warms_up_and_decays_over_the_outer_steps():
    config = MixtureConfig(lr=0.4, min_lr=0.1, lr_warmup_steps=2, lr_decay_style="linear")
    mixture = Mixture(["a", "b"], config, total_steps=5)
    rates = []
    for _ in range(6):
        rates.append(mixture.lr)
        mixture.update(np.array([1.0, -1.0]))
    assert rates == pytest.approx([0.2, 0.4, 0.4, 0.3, 0.2, 0.1])


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


@pytest.mark.parametrize("optimizer", sorted(OUTER_OPTIMIZERS))
def test_state_goes_through_json_bitwise(optimizer):
    config = MixtureConfig(optimizer=optimizer)
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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_never_become_nan_or_infinite(bad):
    mixture = Mixture(["a", "b"], MixtureConfig())
    before = mixture.logits.copy()
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError, match=r"outer step 0: the l"):
        mixture.update(np.array([bad, 1.0]))
    assert mixture.logits.tobytes() == before.tobytes()


def test_a_learning_rate_that_overflows_is_told_with_the_source():
    mixture = Mixture(["a", "b"], MixtureConfig(optimizer="sgd", lr=1e308))
    with np.errstate(over="ignore"), pytest.raises(NonFiniteError, match=r"source a .*mixture.lr"):
        mixture.update(np.array([-100.0, 100.0]))


def test_a_state_with_logits_that_are_no_numbers_is_refused():
    mixture = Mixture(["a", "b"], MixtureConfig())
    state = mixture.state() | {"logits": [float("nan"), 0.0]}
    with pytest.raises(CheckpointError, match="logits are"):
        mixture.load_state(state)


@pytest.mark.parametrize(
    ("optimizer", "beta2", "least", "most"),
    [("scaled_mirror_descent", 0.9, 0.5, 1.0), ("adam", 0.99, 0.0, 0.1)],
)
@pytest.mark.parametrize("seed", range(5))
def test_a_source_that_fell_comes_back(optimizer, beta2, least, most, seed):
    """Clearly harmful for 20 steps, then useful at a third of that size for 100: Adam's gradient
    has the factor α_k, and its scale remembers the time when that was large."""
    mixture = Mixture(
        ["late", "b", "c"], MixtureConfig(optimizer=optimizer, lr=0.1, adam_beta2=beta2)
    )
    generator, lowest = np.random.default_rng(seed), 1.0
    for step in range(120):
        late = 1.0 if step < 20 else -0.3
        mixture.update(np.array([late, 0.0, 0.0]) + 0.3 * generator.normal(size=3))
        lowest = min(lowest, mixture.weights[0])
    assert lowest < 0.03
    assert least < mixture.weights[0] < most

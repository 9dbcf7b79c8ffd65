"""Advantages, their mean over correlated steps, and the verdict on a search."""

import numpy as np
import pytest

from megatron_fastmix.config import MixtureConfig
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.mixture.optimality import (
    FEWEST_OUTER_STEPS,
    Evidence,
    advantages,
    judge_optimality,
    series_mean,
)

NAMES = ("a", "b", "c")
ALL = np.ones(3, bool)


def test_an_advantage_is_over_the_mixture_and_its_error_is_that_of_independent_sources():
    alpha, errors = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.2, 0.1])
    gains = np.array([1.0, 2.0, 4.0])
    value, error = advantages(gains, errors, alpha, ALL)
    np.testing.assert_allclose(value, gains - 1.9)
    draws = gains + errors * np.random.default_rng(0).normal(size=(200_000, 3))
    np.testing.assert_allclose(error, (draws - (draws @ alpha)[:, None]).std(axis=0), rtol=0.01)


def test_an_unseen_source_has_no_advantage_and_lends_none():
    seen = np.array([True, True, False])
    gains, errors = np.array([1.0, 2.0, 0.0]), np.array([0.1, 0.1, np.nan])
    value, error = advantages(gains, errors, np.array([0.25, 0.25, 0.5]), seen)
    np.testing.assert_allclose(value, [-0.5, 0.5, np.nan])
    np.testing.assert_allclose(error[:2], 0.1 * np.sqrt(0.5))
    assert np.isnan(error[2])


def test_sources_once_told_apart_stay_so_and_noise_never_tells_them_apart():
    noise = np.random.default_rng(0).normal(size=(200, 80, 3))

    def told(values, error=(1.0, 1.0, 1.0)) -> bool:
        evidence = Evidence(3)
        for value in values:
            evidence.add(value, error)
        return evidence.tells_apart

    assert np.mean([told(run) for run in noise]) < 0.02
    early = noise[0] + 3.0 * (np.arange(80) < 10)[:, None] * np.array([1, 0, -1])
    assert told(early)
    assert abs(early.sum(axis=0)).max() < 4 * np.sqrt(80)  # the sum at the end would not tell
    # A value without an error is no evidence.
    assert not told(np.full((5, 3), [9.0, np.nan, 0.0]), (np.nan, 1.0, 1.0))


@pytest.mark.parametrize(("memory", "steps"), [(0.0, 40), (0.6, 160)])
def test_the_error_of_a_mean_holds_for_series_with_and_without_memory(memory, steps):
    """Seldom is the true mean, 0, beyond 3 standard errors; by independent steps it often is."""
    generator = np.random.default_rng(1)
    noise = generator.normal(size=(steps, 2000))
    for t in range(1, steps):
        noise[t] += memory * noise[t - 1]
    mean, error = series_mean(noise)
    assert np.mean(np.abs(mean) > 3 * error) < 0.03
    if memory:
        assert np.mean(np.abs(mean) > 3 * noise.std(axis=0) / np.sqrt(steps)) > 0.1


def verdict(advantage, weights, noise=1.0, steps=60, seed=0, lower=(0, 0, 0), upper=(1, 1, 1)):
    """On a tail with these means and white noise; `weights` (K,) or (T, K)."""
    generator = np.random.default_rng(seed)
    alpha = np.broadcast_to(weights, (steps, 3)).astype(float)
    raw = np.asarray(advantage, float) + noise * generator.normal(size=(steps, 3))
    raw -= (raw * alpha).sum(axis=1, keepdims=True)
    return judge_optimality(
        NAMES, raw, alpha, outer_steps=2 * steps, lower=list(lower), upper=list(upper)
    )


def test_a_search_at_its_optimum_has_settled():
    wrong = [verdict([0, 0, 0], [0.5, 0.3, 0.2], seed=s).status != "settled" for s in range(50)]
    assert sum(wrong) <= 3


def test_a_source_that_should_gain_is_named_with_the_remedy():
    found = verdict([0, 0, 3], [0.7, 0.28, 0.02])
    assert found.status == "not_optimal"
    assert "c should gain weight" in found.text
    assert "training.train_iters" in found.text
    assert found.advantage[2] > 3 * found.standard_error[2]
    assert "c should lose weight" in verdict([0, 0, -3], [0.5, 0.3, 0.2]).text


def test_a_bound_excuses_what_it_holds_and_nothing_else():
    assert verdict([0, 0, -3], [0.6, 0.399, 0.001]).status == "settled"
    assert verdict([0, 0, 3], [0.6, 0.399, 0.001]).status == "not_optimal"
    held = {"weights": [0.5, 0.3, 0.2], "upper": (1, 1, 0.2)}
    assert verdict([0, 0, 3], **held).status == "settled"
    assert verdict([0, 0, -3], **held).status == "not_optimal"
    # One source alone is left inside, and has an advantage over what is held at 0.
    assert verdict([3, 0, 0], [0.985, 0.006, 0.009], noise=0.1).status == "settled"


@pytest.mark.parametrize(
    ("weights", "bounds"),
    [
        ([0.5, 0.5, 0.0], {"upper": (0.5, 0.5, 0.5)}),  # both caps are full
        ([0.3, 0.3, 0.4], {"upper": (0.3, 0.3, 0.4)}),
        ([0.3, 0.3, 0.4], {"lower": (0.3, 0.3, 0.4)}),
        ([0.3, 0.3, 0.4], {"lower": (0.3, 0.3, 0.4), "upper": (0.3, 0.3, 0.4)}),
    ],
)
def test_where_bounds_hold_every_weight_nothing_is_asked_for_that_they_forbid(weights, bounds):
    assert verdict([4, 2, -6], weights, **bounds).status == "settled"


def test_where_all_weights_are_at_bounds_one_that_could_change_places_is_named():
    found = verdict([4, -6, 2], [0.5, 0.5, 0.0], upper=(0.5, 0.5, 0.5))
    assert "c should gain weight" in found.text  # of b, not of a


def test_a_weight_with_a_trend_is_still_moving():
    weights = np.linspace([0.5, 0.3, 0.2], [0.3, 0.5, 0.2], 60)
    found = verdict([0, 0, 0], weights)
    assert found.status == "moving"
    assert "changed by" in found.text


def test_a_weight_that_wanders_without_a_trend_is_not():
    wander = 0.03 * np.random.default_rng(4).normal(size=(60, 1)) * [1, -1, 0]
    assert verdict([0, 0, 0], np.array([0.5, 0.3, 0.2]) + wander).status == "settled"


def test_a_short_search_is_not_judged():
    for steps in (0, 1, FEWEST_OUTER_STEPS - 1):
        mixture = Mixture(NAMES, MixtureConfig())
        for _ in range(steps):
            mixture.update(np.zeros(3), ALL, np.array([5.0, 0.0, -5.0]))
        found = mixture.optimality()
        assert found.status == "too_short"
        assert f"{steps} outer steps" in found.text


def test_a_mixture_judges_its_tail_alone():
    mixture = Mixture(NAMES, MixtureConfig(lr=0.0, averaging_fraction=0.5))
    generator = np.random.default_rng(2)
    for step in range(80):
        early = np.array([50.0, 0.0, -50.0]) if step < 40 else np.zeros(3)
        mixture.update(np.zeros(3), ALL, early + generator.normal(size=3))
    assert mixture.optimality().status == "settled"
    assert np.abs(mixture.optimality().advantage).max() < 1


def test_among_many_sources_one_beyond_three_standard_errors_is_chance():
    """Of 300 sources without any advantage, the largest is beyond 3 in about half of the runs."""
    count, random = 300, np.random.default_rng(0)
    found = [
        judge_optimality(
            [f"s{k}" for k in range(count)],
            random.normal(size=(100, count)),
            np.full((100, count), 1 / count),
            outer_steps=200,
            lower=[0.0] * count,
            upper=[1.0] * count,
        ).status
        for _ in range(8)
    ]
    assert found.count("settled") >= 7


def test_the_advantage_told_is_the_one_that_is_judged():
    """c should gain, though it earns less than a, which may not have more."""
    found = verdict([3, 0, 1], [0.6, 0.35, 0.05], noise=0.1, upper=(0.6, 1, 1))
    assert "c should gain weight" in found.text
    assert f"{found.advantage[2]:+.2g} ± {found.standard_error[2]:.2g}" in found.text
    assert found.advantage[2] == pytest.approx(0.875, abs=0.1)  # 1 − (0.35·0 + 0.05·1)/0.4
    assert found.advantage[0] == pytest.approx(2.875, abs=0.1)

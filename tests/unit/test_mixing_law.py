"""UniMax, and the log-linear mixing law with its exact optimum, on planted problems."""

import dataclasses

import numpy as np
import pytest

from megatron_fastmix.config import OutputConfig, load_config
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.log_linear import LogLinearLaw, fit_law
from megatron_fastmix.lab.baselines.mixing_law import best_mixture, mixing_law
from megatron_fastmix.lab.baselines.proxy_pool import ProxyPool
from megatron_fastmix.lab.baselines.registry import find_mixtures
from megatron_fastmix.lab.baselines.settings import (
    MixingLawSettings,
    RegMixSettings,
    UniMaxSettings,
)
from megatron_fastmix.lab.baselines.simple import random_draw, unimax

SIZES = np.array([100.0, 100.0, 100.0])
LAW = LogLinearLaw(floor=2.0, slopes=np.array([0.5, -1.0, 1.5]))
FREE = MixingLawSettings(kl=0.0, max_reads=100.0)


@pytest.fixture
def config(config_file):
    return load_config(config_file)


class PlantedPool(ProxyPool):
    """Proxies whose losses follow two laws, with a little noise."""

    def __init__(self, config, laws):
        self.config, self.laws = config, laws
        self.flops = self.tokens = self.steps = 0

    def losses(self, mixtures, report=print):
        self.steps += len(mixtures)
        noise = np.random.default_rng(5).normal(0, 0.002, (len(mixtures), len(self.laws)))
        return np.stack([law(mixtures) for law in self.laws], axis=1) + noise


def test_unimax_shares_out_evenly_what_may_be_read():
    sizes = np.array([1000.0, 10.0, 100.0])
    # 10, then 100 of (300 - 10) / 2 = 145, then the other 190.
    found = unimax(sizes, UniMaxSettings(budget=300)).weights
    np.testing.assert_allclose(found, np.array([190, 10, 100]) / 300)
    # Read four times the small one has 40, and the others (300 - 40) / 2 = 130.
    found = unimax(sizes, UniMaxSettings(budget=300, max_epochs=4)).weights
    np.testing.assert_allclose(found, np.array([130, 40, 130]) / 300)
    # Enough of each: uniform. Too little of all: by size.
    np.testing.assert_allclose(unimax(sizes, UniMaxSettings(budget="30")).weights, [1 / 3] * 3)
    found = unimax(sizes, UniMaxSettings(budget="1M")).weights
    np.testing.assert_allclose(found, sizes / sizes.sum())


def test_a_random_draw_is_one_of_its_seed():
    one, two = (random_draw(SIZES, seed).weights for seed in (1, 2))
    np.testing.assert_allclose(one.sum(), 1)
    np.testing.assert_array_equal(one, random_draw(SIZES, 1).weights)
    assert np.abs(one - two).max() > 0.01


def test_unimax_asks_for_its_budget(config, tmp_path):
    with pytest.raises(ConfigError, match=r"unimax\.budget: UniMax needs the tokens"):
        find_mixtures([("unimax", config, tmp_path / "m.json")], tmp_path, workers=1)
    for wrong in ({"budget": 0}, {"budget": "many"}, {"max_epochs": 0.0}):
        with pytest.raises(ConfigError, match="unimax"):
            UniMaxSettings(**wrong)


def test_a_planted_law_is_found_again():
    generator = np.random.default_rng(0)
    mixtures = generator.dirichlet([1, 1, 1], 64)
    found = fit_law(mixtures, LAW(mixtures) + generator.normal(0, 0.001, 64))
    assert found.floor == pytest.approx(2.0, abs=0.05)
    np.testing.assert_allclose(found.slopes, LAW.slopes, atol=0.1)
    unseen = generator.dirichlet([0.5, 0.5, 0.5], 100)
    np.testing.assert_allclose(found(unseen), LAW(unseen), atol=0.01)
    # One proxy that went wrong does not move it far.
    losses = LAW(mixtures)
    losses[7] += 3.0
    np.testing.assert_allclose(fit_law(mixtures, losses)(unseen), LAW(unseen), atol=0.05)


def test_the_gradient_is_the_derivative():
    at, step = np.array([0.2, 0.3, 0.5]), 1e-6
    numeric = [(LAW(at + step * e) - LAW(at - step * e)) / (2 * step) for e in np.eye(3)]
    np.testing.assert_allclose(LAW.gradient(at), numeric, rtol=1e-6)


def test_without_divergence_and_limit_the_best_corner_is_answered(config):
    found = best_mixture(config, [LAW], SIZES, FREE)
    np.testing.assert_allclose(found, [0, 1, 0], atol=1e-3)


def test_the_divergence_pulls_to_the_sizes_and_the_limit_holds(config):
    sizes = np.array([80.0, 15.0, 5.0])
    far = best_mixture(config, [LAW], sizes, MixingLawSettings(kl=1e4))
    np.testing.assert_allclose(far, sizes / 100, atol=1e-3)
    limited = MixingLawSettings(kl=0.0, max_reads=2.0)
    free = best_mixture(config, [LAW], sizes, limited)  # of a run of unknown length
    np.testing.assert_allclose(free, [0, 1, 0], atol=1e-3)
    config = dataclasses.replace(config, output=OutputConfig(token_budget=100))
    capped = best_mixture(config, [LAW], sizes, limited)
    np.testing.assert_allclose(capped, [0.7, 0.3, 0.0], atol=1e-3)
    with pytest.raises(
        ConfigError, match=r"max_reads: found 2; .* give 0\.667 of token_budget 300"
    ):
        longer = dataclasses.replace(config, output=OutputConfig(token_budget=300))
        best_mixture(longer, [LAW], sizes, limited)
    # In between: no other mixture within the limit is better.
    settings = MixingLawSettings(kl=0.3)
    found = best_mixture(config, [LAW], sizes, settings)

    def value(alpha):
        return LAW(alpha) + 0.3 * (alpha * np.log(alpha / (sizes / 100))).sum(axis=-1)

    others = np.random.default_rng(0).dirichlet([2, 2, 2], 20_000)
    others = others[(others <= 5 * sizes / 100).all(axis=1)]
    assert value(found) <= value(others).min() + 1e-6


def test_the_largest_excess_counts_where_the_objective_says_so(config):
    one = LogLinearLaw(floor=0.0, slopes=np.array([-1.0, 1.0, 1.0]))
    two = LogLinearLaw(floor=0.0, slopes=np.array([1.0, -1.0, 1.0]))
    (target,) = config.targets
    both = (target, dataclasses.replace(target, name="other"))
    worst = dataclasses.replace(
        config,
        targets=both,
        objective=dataclasses.replace(config.objective, target_aggregation="worst_case"),
    )
    np.testing.assert_allclose(
        best_mixture(worst, [one, two], SIZES, FREE), [0.5, 0.5, 0], atol=1e-3
    )
    easier = dataclasses.replace(
        worst, targets=(both[0], dataclasses.replace(both[1], reference_loss=1.0))
    )
    assert best_mixture(easier, [one, two], SIZES, FREE)[0] > 0.7


def test_the_baseline_finds_a_planted_optimum(config):
    pool = PlantedPool(config, [LAW])
    found = mixing_law(pool, SIZES, MixingLawSettings(kl=0.5), RegMixSettings(runs=32))
    assert found.steps == 32
    np.testing.assert_allclose(
        found.weights, best_mixture(config, [LAW], SIZES, MixingLawSettings(kl=0.5)), atol=0.02
    )


def test_wrong_settings_are_refused():
    for wrong in ({"kl": -1.0}, {"max_reads": 0.5}):
        with pytest.raises(ConfigError, match="mixing_law"):
            MixingLawSettings(**wrong)

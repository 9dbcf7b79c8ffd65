"""DoReMi, DoGE and ODM: their updates by hand, and each on a problem with a planted answer."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_fastmix.config import load_config
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines import doge, doremi, odm, registry
from megatron_fastmix.lab.baselines.settings import BaselineSettings
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.lock import RunLock
from megatron_fastmix.search.loop import Search


def test_doremi_raises_excess_and_smooths():
    settings = doremi.DoReMiSettings(step_size=2.0, smoothing=0.1)
    found = doremi.update(np.array([0.5, 0.5]), np.array([np.log(3) / 2, 0.0]), settings)
    # 0.5·3 : 0.5·1, then a tenth of uniform.
    np.testing.assert_allclose(found, [0.9 * 0.75 + 0.05, 0.9 * 0.25 + 0.05])


def test_doremi_does_not_lower_a_source_that_the_minibatch_lacks():
    """Five sources of one excess, of which each minibatch has four."""
    settings, weights, latest = doremi.DoReMiSettings(), np.full(5, 0.2), np.full(5, np.nan)
    for step in range(100):
        samples = np.ones(5)
        samples[step * 3 % 5] = 0
        latest = doremi.latest_excess(latest, 0.7 * samples, samples)
        weights = doremi.update(weights, latest, settings)
    np.testing.assert_allclose(weights, 0.2)


def test_doge_moves_by_the_learning_rate_over_the_temperature():
    settings = doge.DoGESettings(temperature=0.5)
    found = doge.update(np.array([0.25, 0.75]), np.array([np.log(3), 0.0]), 0.5, settings)
    np.testing.assert_allclose(found, [0.5, 0.5])


def test_odm_averages_the_rewards_of_drawn_sources_alone():
    found = odm.reward(
        np.array([1.0, 2.0]), np.array([3.0, np.nan]), np.array([0.5, 0.5]), odm.ODMSettings()
    )
    np.testing.assert_allclose(found, [0.9 * 1 + 0.1 * 6, 2])


def test_odm_explores_first_and_then_follows_the_reward():
    rewards = np.array([0.0, 5.0, 1.0])
    np.testing.assert_allclose(odm.choose(rewards, 1), [1 / 3] * 3)
    late = odm.choose(rewards, 200)
    exploration = np.sqrt(np.log(3) / (3 * 200))
    assert late.argmax() == 1
    assert late.min() >= exploration
    np.testing.assert_allclose(late.sum(), 1)


@pytest.fixture
def planted(search_values, tmp_path):
    search_values["training"] |= {"train_iters": 60, "lr": 5e-3}
    file = tmp_path / "planted.yaml"
    file.write_text(yaml.safe_dump(search_values))
    return load_config(file)


def _found(function, *arguments):
    (result,) = run_ranks(1, function, *arguments)
    np.testing.assert_allclose(result.weights.sum(), 1)
    assert len(result.history) >= 60
    assert result.flops > 0
    return dict(zip(("forward", "backward", "noise"), result.weights, strict=True)), result


@pytest.mark.slow
def test_doge_prefers_the_source_that_resembles_the_target(planted, tmp_path):
    weights, result = _found(doge.doge, planted, doge.DoGESettings(), str(tmp_path))
    assert weights["forward"] > 0.4
    assert weights["forward"] > weights["backward"] > weights["noise"]
    # One backward pass of each source and one of the target.
    assert result.tokens == 60 * 12 * 32


@pytest.mark.slow
def test_doremi_leaves_noise_that_no_model_learns(planted, tmp_path):
    """While there is something to learn, noise, on which the reference is no better, gets nothing;
    once all is learned the excess of every source is near 0 and the weights wander."""
    settings = doremi.DoReMiSettings(reference="uniform")
    weights, result = _found(doremi.doremi, planted, settings, str(tmp_path))
    assert weights["noise"] < 1 / 3
    forward, backward, noise = result.history[15]
    assert noise < 0.01
    assert min(forward, backward) > 0.2
    assert result.tokens == 2 * 60 * 12 * 32


@pytest.mark.slow
def test_odm_reads_most_where_the_loss_stays_high(planted, tmp_path):
    weights, _ = _found(odm.odm, planted, odm.ODMSettings(), str(tmp_path))
    assert weights["noise"] == max(weights.values())


@pytest.fixture
def fastmix(search_values, tmp_path):
    """The arguments of FastMix as one of the methods that are compared."""
    search_values["engine"] = {"zero_stage": 0}
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(search_values))
    return "fastmix", load_config(file), tmp_path / "found.json", BaselineSettings()


def _stopped_after_its_first_step(*arguments):
    first = Search.inner_step

    def asked(search, report):
        search.folder.request_stop()
        return first(search, report)

    Search.inner_step = asked  # in this process, which ends with the test
    registry._fastmix(*arguments)


def test_a_search_that_is_stopped_is_no_result_of_a_comparison(fastmix):
    file = fastmix[2]
    with pytest.raises(AssertionError, match="stopped at step 1 of 6; the same command goes on"):
        run_ranks(1, _stopped_after_its_first_step, *fastmix)
    assert not file.exists()
    run_ranks(1, registry._fastmix, *fastmix)  # a stop that was asked for then is over
    assert file.exists()


def test_a_search_that_runs_is_not_joined_by_another(fastmix):
    lock = RunLock(RunFolder(Path(fastmix[1].run_dir)))
    lock.acquire()
    try:
        with pytest.raises(ConfigError, match="a search is running here"):
            registry._fastmix(*fastmix)
    finally:
        lock.release()

"""Baselines from many proxies, and those that cost nothing."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from megatron_fastmix.cli import main as cli
from megatron_fastmix.config import load_config
from megatron_fastmix.errors import ConfigError, DataError, NonFiniteError
from megatron_fastmix.lab.baselines import doge, doremi, draws
from megatron_fastmix.lab.baselines.climb import climb
from megatron_fastmix.lab.baselines.draws import draw_mixtures, first_mixtures, simulate
from megatron_fastmix.lab.baselines.objective import target_loss
from megatron_fastmix.lab.baselines.proxy_pool import ProxyPool
from megatron_fastmix.lab.baselines.proxy_run import ProxyRun
from megatron_fastmix.lab.baselines.registry import find_mixtures
from megatron_fastmix.lab.baselines.regmix import random_search, regmix
from megatron_fastmix.lab.baselines.regressors import FEWEST_FOR_TREES, REGRESSORS
from megatron_fastmix.lab.baselines.settings import (
    ClimbSettings,
    DoGESettings,
    DoReMiSettings,
    RegMixSettings,
    load_settings,
)
from megatron_fastmix.lab.baselines.simple import proportional, temperature, uniform
from megatron_fastmix.mixture.grouping import Grouping
from megatron_fastmix.proxy.megatron_gpt import batch_losses
from megatron_fastmix.result.mixture_file import read_mixture

BEST = np.array([0.6, 0.3, 0.1])


class PlantedPool(ProxyPool):
    """Stands for proxies whose loss is lowest at `BEST`, with the noise of a seed."""

    def __init__(self, config, noise=0.002):
        self.config, self.noise = config, noise
        self.flops = self.tokens = self.steps = 0
        self.asked = []

    def losses(self, mixtures, report=print):
        self.asked.append(mixtures)
        self.steps += len(mixtures)
        noise = np.random.default_rng(5).normal(0, self.noise, len(mixtures))
        return (((mixtures - BEST) ** 2).sum(axis=1) + noise)[:, None]


@pytest.fixture
def config(config_file):
    return load_config(config_file)


SIZES = np.array([100.0, 100.0, 100.0])


def test_mixtures_that_cost_nothing_follow_the_sizes():
    sizes = np.array([8.0, 1.0, 1.0])
    np.testing.assert_allclose(uniform(sizes).weights, [1 / 3] * 3)
    np.testing.assert_allclose(proportional(sizes).weights, [0.8, 0.1, 0.1])
    # 8^(1/3) = 2.
    np.testing.assert_allclose(temperature(sizes, 3.0).weights, [0.5, 0.25, 0.25])
    assert uniform(sizes).flops == 0


def test_draws_are_shares_around_the_sizes():
    sizes = np.array([70.0, 20.0, 10.0])
    plain = RegMixSettings(prior_power=1.0)
    drawn = draw_mixtures(np.random.default_rng(0), sizes, 20_000, plain)
    np.testing.assert_allclose(drawn.sum(axis=1), 1)
    # The mean of Dir(s·p) is p for every s.
    np.testing.assert_allclose(drawn.mean(axis=0), [0.7, 0.2, 0.1], atol=0.01)
    # Weak priors make corners, strong ones do not.
    assert (drawn.max(axis=1) > 0.99).mean() > 0.2
    strong = draw_mixtures(
        np.random.default_rng(0), sizes, 1000, RegMixSettings(min_strength=500, max_strength=500)
    )
    tempered = np.sqrt(sizes) / np.sqrt(sizes).sum()
    assert np.abs(strong - tempered).max() < 0.12


def test_the_training_mixtures_alone_are_tempered():
    sizes = np.array([70.0, 20.0, 10.0])
    settings = RegMixSettings(candidates=20_000)
    trained = draw_mixtures(np.random.default_rng(0), sizes, 20_000, settings)
    simulated = simulate(np.random.default_rng(0), sizes, settings)
    assert simulated.shape == (20_000, 3)
    tempered = np.sqrt(sizes) / np.sqrt(sizes).sum()
    np.testing.assert_allclose(trained.mean(axis=0), tempered, atol=0.01)
    np.testing.assert_allclose(simulated.mean(axis=0), [0.7, 0.2, 0.1], atol=0.01)
    # The variance of a share p under Dir(p) at strength 1 is p(1 - p)/2.
    np.testing.assert_allclose(simulated.var(axis=0), [0.105, 0.08, 0.045], atol=0.005)


def test_no_mixture_reads_a_source_more_often_than_allowed():
    sizes = np.array([1000.0, 100.0, 1.0])
    settings = RegMixSettings(candidates=5000)
    most = 15 * sizes / sizes.sum()
    assert (draw_mixtures(np.random.default_rng(0), sizes, 5000, settings) <= most).all()
    assert (simulate(np.random.default_rng(0), sizes, settings) <= most).all()
    free = RegMixSettings(candidates=5000, max_reads=1e9)
    assert (simulate(np.random.default_rng(0), sizes, free)[:, 2] > most[2]).any()
    # Where none reads too often, the limit changes no draw.
    np.testing.assert_array_equal(
        draw_mixtures(np.random.default_rng(0), SIZES, 64, settings),
        draw_mixtures(np.random.default_rng(0), SIZES, 64, free),
    )
    with pytest.raises(ConfigError, match="max_reads: found 1; of"):
        draw_mixtures(np.random.default_rng(0), SIZES, 64, RegMixSettings(max_reads=1.0))


def test_fewer_proxies_are_the_first_of_more():
    settings = RegMixSettings()
    _, few = first_mixtures(7, SIZES, 37, settings)
    _, many = first_mixtures(7, SIZES, 64, settings)
    np.testing.assert_array_equal(few, many[:37])


@pytest.mark.parametrize("predictor", ["lightgbm", "linear"])
def test_predictors_rank_unseen_mixtures(predictor):
    generator = np.random.default_rng(1)
    seen, unseen = generator.dirichlet([1, 1, 1], 64), generator.dirichlet([1, 1, 1], 300)
    slope = np.array([1.0, 2.0, 4.0])
    predict = REGRESSORS[predictor](seen, seen @ slope + generator.normal(0, 0.01, 64))
    found, true = predict(unseen).argsort().argsort(), (unseen @ slope).argsort().argsort()
    assert np.corrcoef(found, true)[0, 1] > 0.9


def test_regmix_finds_a_planted_optimum(config):
    found = regmix(PlantedPool(config), SIZES, RegMixSettings(candidates=20_000))
    assert np.abs(found.weights - BEST).max() < 0.12
    assert found.steps == 64
    np.testing.assert_allclose(found.weights.sum(), 1)


def test_random_search_keeps_the_best_proxy_of_those_that_regmix_trains(config):
    pool = PlantedPool(config, noise=0)
    found = random_search(pool, SIZES, RegMixSettings(runs=64))
    (mixtures,) = pool.asked
    assert mixtures.shape == (64, 3)
    best = min(mixtures, key=lambda mixture: float(((mixture - BEST) ** 2).sum()))
    np.testing.assert_array_equal(found.weights, best)
    regmix_pool = PlantedPool(config)
    regmix(regmix_pool, SIZES, RegMixSettings(runs=64, candidates=100))
    np.testing.assert_array_equal(regmix_pool.asked[0], mixtures)


def test_a_line_sends_linear_regmix_to_a_corner(config):
    found = regmix(PlantedPool(config), SIZES, RegMixSettings(), "linear")
    assert found.weights[0] > 0.95


@pytest.mark.slow
def test_climb_trains_its_later_proxies_near_the_optimum(config):
    pool = PlantedPool(config)
    found = climb(pool, SIZES, ClimbSettings(), RegMixSettings(candidates=20_000))
    assert [len(mixtures) for mixtures in pool.asked] == [37, 18, 9]
    distances = [np.abs(mixtures - BEST).sum(axis=1).mean() for mixtures in pool.asked]
    assert distances[1] < 0.6 * distances[0]
    assert np.abs(found.weights - BEST).max() < 0.15
    assert len(found.history) == 3


def test_climb_refuses_too_few_candidates_before_a_proxy_trains(config):
    pool = PlantedPool(config)
    with pytest.raises(ConfigError, match=r"regmix\.candidates: found 10, fewer than a round"):
        climb(pool, SIZES, ClimbSettings(), RegMixSettings(candidates=10, top=4))
    assert pool.asked == []


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("token_budget", 10**9, False),
        ("eod_mask_loss", True, False),
        ("packing", False, False),
        ("data_cache_path", "/elsewhere", True),
    ],
)
def test_finished_proxies_are_those_that_read_alike(config, tmp_path, key, value, same):
    mixture = dataclasses.replace(config.mixture, weighting="sampling")
    config = dataclasses.replace(config, mixture=mixture)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, **{key: value}))
    folders = {ProxyPool(each, tmp_path, workers=1).folder for each in (config, other)}
    assert (len(folders) == 1) == same


def test_several_targets_count_by_weight_or_by_the_worst(search_values, corpora, tmp_path):
    search_values["targets"] = [
        {"name": "a", "path": str(corpora / "target"), "weight": 3.0, "reference_loss": 1.0},
        {"name": "b", "path": str(corpora / "target_backward"), "weight": 1.0},
    ]
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(search_values))
    losses = np.array([[2.0, 4.0], [6.0, 0.0]])
    np.testing.assert_allclose(target_loss(load_config(file), losses), [2.5, 4.5])
    worst = load_config(file, ["--objective.target_aggregation=worst_case"])
    np.testing.assert_allclose(target_loss(worst, losses), [4.0, 5.0])
    del search_values["targets"][0]["weight"]
    file.write_text(yaml.safe_dump(search_values))
    gains = load_config(file, ["--objective.target_aggregation=least_gain"])
    np.testing.assert_allclose(target_loss(gains, losses), [4.0, 5.0])
    with pytest.raises(ConfigError, match="target b: reference_loss is 0; regmix measures gains"):
        find_mixtures([("regmix", gains, tmp_path / "found.json")], tmp_path, workers=1)


@pytest.mark.slow
def test_the_command_trains_real_proxies_once_and_prefers_the_useful_source(
    config_file, tmp_path, capsys
):
    arguments = ["baseline", "regmix_linear", "--config", str(config_file)]
    arguments += ["--output", str(tmp_path / "out"), "--train-iters=12", "--lr=0.01"]
    arguments += ["--set", "regmix.runs=6", "regmix.candidates=1000", "regmix.top=10"]
    assert cli.main(arguments) == 0
    mixture = read_mixture(tmp_path / "out")
    assert mixture.estimator == "regmix_linear"
    assert mixture.weights["forward"] == max(mixture.weights.values())
    proxies = sorted((tmp_path / "out" / "proxies").glob("*/proxy-*.json"))
    assert len(proxies) == 6
    outcomes = [json.loads(file.read_text()) for file in proxies]
    assert mixture.cost["training_flops"] == pytest.approx(sum(o["flops"] for o in outcomes))
    assert mixture.cost["tokens"] == 6 * 12 * 12 * 32
    assert "forward" in capsys.readouterr().out
    assert (tmp_path / "out" / "blend.txt").exists()

    # A second call trains nothing and gives the same; other settings have proxies of their own.
    times = [file.stat().st_mtime_ns for file in proxies]
    assert cli.main(arguments) == 0
    assert [file.stat().st_mtime_ns for file in proxies] == times
    assert read_mixture(tmp_path / "out").weights == mixture.weights
    assert cli.main([*arguments, "--train-iters=13"]) == 0
    assert len(list((tmp_path / "out" / "proxies").glob("*/proxy-*.json"))) == 12
    proxies[0].write_text("{")
    assert cli.main(arguments) == DataError.exit_code
    assert str(proxies[0]) in capsys.readouterr().err


def test_an_unknown_method_lists_the_known_ones(config_file, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["baseline", "magic", "--config", str(config_file), "--output", str(tmp_path)])
    assert "regmix" in capsys.readouterr().err
    assert not list(Path(tmp_path).glob("mixture.json"))


def test_hyper_parameters_are_flags_and_wrong_ones_are_refused():
    found = load_settings(["regmix.runs=512", "climb.runs=[64, 32, 16]", "doge.temperature=0.1"])
    assert (found.regmix.runs, found.climb.runs) == (512, (64, 32, 16))
    assert found.doge.temperature == 0.1
    for wrong, said in (
        ("regmix.magic=1", "magic"),
        ("regmix.runs", "write SECTION.KEY=VALUE"),
        ("regmix.runs=0", "regmix.runs"),
        ("climb.top=5", "climb.top"),
        ("climb.runs=[]", "climb.runs"),
        ("doremi.smoothing=2", "doremi.smoothing: found 2"),
        ("doremi.step_size=-1", "doremi.step_size: found -1"),
        ("doge.temperature=0", "doge.temperature: found 0"),
        ("doge.target_samples=0", "doge.target_samples: found 0"),
        ("odm.smoothing=1.5", "odm.smoothing: found 1.5"),
        ("odm.warmup=2", "odm.warmup: found 2"),
        ("odm.micro_batches=0", "odm.micro_batches: found 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_settings([wrong])


@pytest.mark.parametrize(
    ("method", "key", "fewest"),
    [
        ("regmix", "regmix.runs", 11),  # leaves of 6 and 5: two bins of 3 and the rest
        ("climb", "climb.runs", 11),
        ("regmix_linear", "regmix.runs", 3),  # sources
        ("mixing_law", "regmix.runs", 4),
    ],
)
def test_too_few_proxies_for_a_fit_are_refused(config, tmp_path, method, key, fewest):
    def wanted(count):
        settings = load_settings([f"{key}={count}"])
        found = [(method, config, tmp_path / "found.json")]
        find_mixtures(found, tmp_path / "proxies", workers=1, settings=settings)

    few = "[1]" if key == "climb.runs" else "1"
    with pytest.raises(ConfigError, match=f"{key}: found 1 .*{method}, .* use {fewest} or more"):
        wanted(few)
    assert not (tmp_path / "proxies").exists()


def test_a_mixture_without_a_search_tells_of_none(config_file, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["baseline", "uniform", "--config", str(config_file), "--output", out]) == 0
    said = capsys.readouterr()
    assert "outer steps" not in said.out and "moved" not in said.out
    assert "not written" not in said.err
    assert cli.main(["export", out]) == 0
    assert "swamps" not in capsys.readouterr().err
    assert cli.main(["compare", out, out]) == 7
    assert "Spread A is not known" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["regmix", "climb"])
def test_a_missing_package_is_said_before_the_first_proxy(config, tmp_path, monkeypatch, method):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    wanted = [("uniform", config, tmp_path / "uniform.json")]
    wanted.append((method, config, tmp_path / "found.json"))
    with pytest.raises(ConfigError, match="pip install megatron-fastmix"):
        find_mixtures(wanted, tmp_path / "proxies", workers=1)
    assert list(tmp_path.glob("*.json")) == []
    assert not (tmp_path / "proxies").exists()


def test_bounds_that_a_method_does_not_keep_are_refused(search_values, config_file, tmp_path):
    search_values["sources"][1]["max_weight"] = 0.4
    config_file.write_text(yaml.safe_dump(search_values))
    bounded = load_config(config_file)
    for method in ("regmix", "doge"):
        wanted = [(method, bounded, tmp_path / "found.json")]
        with pytest.raises(ConfigError, match=f"backward: has .* which {method} does not keep"):
            find_mixtures(wanted, tmp_path / "proxies", workers=1)
    said = []
    wanted = [("uniform", bounded, tmp_path / "even.json")]
    find_mixtures(wanted, tmp_path, workers=1, report=said.append)
    assert said[0] == "note: uniform does not keep the bounds of backward"


def test_a_limit_that_simulated_mixtures_break_is_said_before_the_first_proxy(config, monkeypatch):
    monkeypatch.setattr(draws, "MAX_ROUNDS", 5)
    settings = RegMixSettings(
        runs=4,
        min_strength=5.0,
        max_strength=5.0,
        candidate_strength=0.05,  # mostly next to one source alone
        candidates=1000,
        top=4,
        max_reads=1.5,
    )
    pool = PlantedPool(config)
    with pytest.raises(ConfigError, match="max_reads"):
        regmix(pool, SIZES, settings)
    with pytest.raises(ConfigError, match="max_reads"):
        climb(pool, SIZES, ClimbSettings(runs=(4, 2), top=4), settings)
    assert pool.asked == []


@pytest.fixture
def of_groups(search_values, config_file):
    """`forward` and `backward` are one group, whose shares inside follow their sizes."""
    for source in search_values["sources"][:2]:
        source["group"] = "runs"
    search_values["mixture"]["learn"] = "groups"
    config_file.write_text(yaml.safe_dump(search_values))
    return load_config(config_file)


@pytest.mark.parametrize(("method", "expected"), [("uniform", 0.5), ("proportional", None)])
def test_what_costs_nothing_weighs_groups_where_groups_are_learned(
    of_groups, tmp_path, method, expected
):
    file = tmp_path / "found.json"
    find_mixtures([(method, of_groups, file)], tmp_path, workers=1)
    found = read_mixture(file)
    sizes = {source.name: source.size.loss_tokens for source in found.sources}
    weights = found.group_weights(found.members)
    runs = sizes["forward"] + sizes["backward"]
    assert weights["runs"] == pytest.approx(expected or runs / sum(sizes.values()))
    assert found.weights["forward"] / weights["runs"] == pytest.approx(sizes["forward"] / runs)
    assert [(group.name, group.learned) for group in found.groups] == [
        ("runs", True),
        ("noise", True),
    ]


def test_a_pool_trains_proxies_of_groups_on_their_sources(of_groups, tmp_path):
    groups = Grouping.of(["runs", "runs", "noise"], [3, 1, 1])
    pool = ProxyPool(of_groups, tmp_path, workers=1, groups=groups)
    mixtures = np.array([[0.8, 0.2], [0.4, 0.6]])
    pool.folder.mkdir(parents=True)
    for number, (runs, noise) in enumerate(mixtures.tolist()):
        sources = np.array([runs * 0.75, runs * 0.25, noise])
        outcome = {"recipe": pool.recipe, "weights": sources.tolist(), "losses": [float(number)]}
        outcome |= {"flops": 1.0, "tokens": 1, "seconds": 1.0}
        pool._file(sources).write_text(json.dumps(outcome))
    assert pool.losses(mixtures).tolist() == [[0.0], [1.0]]


def test_methods_that_move_single_sources_refuse_groups(of_groups, tmp_path):
    for method in ("doge", "doremi", "odm"):
        with pytest.raises(ConfigError, match=rf"mixture.learn: found groups; {method} .*uniform"):
            find_mixtures([(method, of_groups, tmp_path / "m.json")], tmp_path, workers=1)


@pytest.mark.parametrize("sources", [3, 17])
def test_trees_tell_mixtures_apart_from_the_fewest_proxies_on(sources):
    generator = np.random.default_rng(0)
    for count, apart in ((FEWEST_FOR_TREES - 1, False), (FEWEST_FOR_TREES, True)):
        seen = generator.dirichlet(np.ones(sources), count)
        predict = REGRESSORS["lightgbm"](seen, seen @ np.arange(sources))
        unseen = generator.dirichlet(np.ones(sources), 200)
        assert (len(np.unique(predict(unseen))) > 1) == apart


def test_what_doge_does_not_know_of_the_objective_is_said(config_file, tmp_path, monkeypatch):
    worst = load_config(config_file, ["--objective.target_aggregation=worst_case"])
    monkeypatch.setattr("megatron_fastmix.lab.baselines.registry.run_jobs", lambda *_, **__: None)
    said = []
    wanted = [("doge", worst, tmp_path / "m.json")] * 2
    find_mixtures(wanted, tmp_path, workers=1, report=said.append)
    assert len(said) == 1 and "not objective.target_aggregation worst_case" in said[0]


def test_the_result_of_a_search_is_not_written_over(config_file, tmp_path, capsys):
    arguments = ["baseline", "uniform", "--config", str(config_file), "--output", str(tmp_path)]
    for metrics in (tmp_path / "metrics.jsonl", tmp_path / "seed-1" / "metrics.jsonl"):
        metrics.parent.mkdir(exist_ok=True)
        metrics.touch()
        assert cli.main(arguments) == ConfigError.exit_code
        assert "run folder of a search" in capsys.readouterr().err
        assert not (tmp_path / "mixture.json").exists()
        metrics.unlink()


@pytest.mark.parametrize(
    ("method", "said"), [("doge", "begins anew"), ("regmix_linear", "goes on from there")]
)
def test_ctrl_c_says_what_is_left(config_file, tmp_path, monkeypatch, capsys, method, said):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("megatron_fastmix.cli.baseline.find_mixtures", stopped)
    arguments = ["baseline", method, "--config", str(config_file), "--output", str(tmp_path)]
    assert cli.main(arguments) == 130
    assert said in capsys.readouterr().out


def diverging(config_file, steps):
    flags = [f"--train-iters={steps}", "--mixture.inner_steps=1", "--lr-warmup-iters=0"]
    return load_config(config_file, [*flags, "--lr=1e15"])


@pytest.mark.parametrize(
    ("steps", "search", "settings"),
    [
        (1, doremi.doremi, DoReMiSettings()),  # its reference is lost in its only step
        (2, doge.doge, DoGESettings()),
    ],
)
def test_a_loss_that_is_not_finite_ends_a_method(config_file, tmp_path, steps, search, settings):
    said = f"step {steps}: the gradient is not finite; lower training.lr"
    with pytest.raises(NonFiniteError, match=said):
        search(diverging(config_file, steps), settings, str(tmp_path))


def test_a_loss_that_is_not_finite_ends_a_proxy(config_file, tmp_path):
    run = ProxyRun(diverging(config_file, 2), str(tmp_path))
    run.train(run.read([0, 1, 2]))
    with pytest.raises(NonFiniteError, match="step 2: the gradient is not finite"):
        run.train(run.read([0, 1, 2]))
    with pytest.raises(NonFiniteError, match="target target, after step 1: the loss is not finite"):
        run.target_losses(4)


def test_without_a_limit_the_gradient_stays_as_it_is(config_file, tmp_path):
    config = load_config(config_file, ["--clip-grad=0"])
    run, plain = (ProxyRun(config, str(tmp_path)) for _ in range(2))
    run.train(run.read([0, 1, 2]))
    for batch, weights in plain.read([0, 1, 2]):
        (batch_losses(plain.model, batch) * weights).sum().float().backward()
    for group in plain.optimizer.param_groups:
        group["lr"] = plain.lr
    plain.optimizer.step()
    assert all(map(torch.equal, run.parameters, plain.parameters))

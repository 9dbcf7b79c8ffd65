"""The scenarios of configs/studies, and the picture of variants."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_fastmix.config import strict_yaml
from megatron_fastmix.corpus.preprocess_config import PreprocessConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.registry import settings_of
from megatron_fastmix.lab.comparison.method_lines import (
    MethodLine,
    equal_lengths,
    make_lines,
    training_ratio,
)
from megatron_fastmix.lab.comparison.rows import RowFile, SearchRow
from megatron_fastmix.lab.comparison.same_search import find_same
from megatron_fastmix.lab.comparison.scenario import load_scenario
from megatron_fastmix.lab.comparison.statistics import total_variation
from megatron_fastmix.lab.comparison.variant_plot import (
    plot_variants,
    points,
)
from megatron_fastmix.proxy.cost import flops_per_token, outer_step_tokens

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "tools" / "method_rows"


def study(name):
    return load_scenario(ROOT / "configs" / "studies" / f"{name}.yaml")


def test_the_budget_is_that_of_the_target_models():
    found = study("token_budget")
    training, length = found.compare.training, found.search.data.seq_length
    tokens = training.train_iters * training.global_batch_size * length
    assert found.searches["fastmix"].data.budget == tokens
    assert found.searches["no_budget"].data.budget is None
    assert found.searches["at_most_4_reads"] == found.searches["no_budget"]
    values = strict_yaml.load_yaml(ROOT / "configs" / "studies_corpora.yaml")
    made = strict_yaml.from_dict(PreprocessConfig, values)
    prefixes = {prefix for dataset in made.datasets for prefix, _, _ in dataset.outputs}
    paths = {source.path for source in found.search.sources}
    assert "data/studies/docstrings_train" in prefixes & paths


def test_the_short_search_is_as_long_as_each_of_the_proxies():
    found = study("equal_lengths")
    steps = found.searches["random_search"].training.train_iters
    for name in ("fastmix_short", "fastmix_short_often"):
        assert found.searches[name].training.train_iters == steps
    assert found.searches["fastmix"].training.train_iters > steps


def test_sixty_four_proxies_cost_64_short_searches_in_training_alone():
    found = study("equal_lengths")
    rows = RowFile(ROWS / "pretrain_one_target.jsonl").read()
    others = rows.searches["random_search", 1]
    config = found.searches["fastmix_short"]
    steps, length = config.training.train_iters, config.data.seq_length
    outer_steps = steps // config.mixture.inner_steps
    tokens = steps * config.training.global_batch_size * length
    per_token = flops_per_token(config.proxy, 2048, length)
    outer = outer_steps * outer_step_tokens(config, source_tokens=length, target_tokens=length)
    training, search = tokens * per_token, (tokens + outer / 3) * per_token
    short = SearchRow(
        configuration="",
        method="fastmix_short",
        seed=1,
        weights=others.weights,
        weight_std=others.weight_std,
        flops=search,
        wall_seconds=1.0,
        tokens=tokens,
        versions={},
    )
    judged = [SimpleNamespace(seed=1, loss=4.0, losses={}, versions={})]
    searches = {"fastmix_short": [short], "random_search": [others]}
    lines = make_lines(found, searches, dict.fromkeys(searches, judged))
    ours, theirs = sorted(lines, key=lambda line: line.flops)
    assert training_ratio(theirs, ours) == 64
    assert equal_lengths(theirs, ours)
    # The row's FLOPs are those of 64 trainings, and of the evaluation on 256 samples of the target.
    evaluation = 256 / 3 / (steps * config.training.global_batch_size)
    assert others.flops == pytest.approx(64 * training * (1 + evaluation))
    # With the outer steps of FastMix counted too: 12 of 336 passes beside 6,144 of training.
    assert search / training == pytest.approx(1 + 12 * 336 / 6144)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("equal_lengths", "fastmix"),
        ("equal_lengths", "random_search"),
        ("proxy_sizes", "fastmix"),
    ],
)
def test_searches_that_are_done_are_taken_up(name, method):
    found = study(name)
    row = find_same(
        RowFile(ROWS / "pretrain_one_target.jsonl").read(),
        method,
        2,
        found.searches[method],
        settings_of(method, found.baselines),
    )
    assert row is not None
    assert (row.method, row.seed) == (method, 2)


def line(method, weights, losses, flops):
    return MethodLine(
        method=method,
        losses=losses,
        flops=flops,
        tokens=None,
        seconds=1.0,
        weights={},
        weights_by_seed={seed: {"a": a, "b": 1 - a} for seed, a in weights.items()},
    )


def test_distances_are_between_different_seeds():
    assert total_variation({"a": 0.7, "b": 0.3}, {"a": 0.2, "b": 0.8}) == pytest.approx(0.5)
    ours = line("fastmix", {1: 0.5, 2: 0.7}, {}, 1.0)
    assert ours.distances(ours) == pytest.approx([0.2, 0.2])
    other = line("other", {1: 0.7, 2: 0.9}, {}, 1.0)
    # Seed 1 to the other's seed 2, and the other way round.
    assert other.distances(ours) == pytest.approx([0.0, 0.4])


def test_the_picture_has_a_line_for_each_kind_of_proxy(tmp_path):
    found = study("proxy_sizes")
    names = ["fastmix", *(variant.name for variant in found.variants)]
    losses = {1: 4.5, 2: 4.6, 3: 4.4}
    lines = [
        line(name, {1: 0.5, 2: 0.6, 3: 0.55}, losses, 2.0 + place)
        for place, name in enumerate(names)
    ]
    series = {}
    for point in points(found, lines):
        series.setdefault(point.series, []).append(point.steps)
    assert series == {
        "2 × 64": [400, 800, 1600],
        "2 × 64, learning rate 0.0001": [800],
        "1 × 32": [400, 800, 1600],
        "3 × 96": [400, 800, 1600],
    }
    uniform = line("uniform", dict.fromkeys(losses, 0.5), dict.fromkeys(losses, 4.8), 0.0)
    plot_variants(found, [*lines, uniform], tmp_path / "variants.png")
    assert (tmp_path / "variants.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="needs rows of fastmix with two seeds"):
        plot_variants(found, lines[1:], tmp_path / "none.png")

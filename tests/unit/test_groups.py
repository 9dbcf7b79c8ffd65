"""Groups of sources with one logit each: chain, bounds, resume, configuration and result."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from megatron_fastmix.config import MixtureConfig, strict_yaml
from megatron_fastmix.config.search import SearchConfig
from megatron_fastmix.errors import CheckpointError, ConfigError
from megatron_fastmix.mixture.grouping import Grouping
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.mixture.outer_optimizer import logit_gradient
from megatron_fastmix.mixture.simplex import project_onto_nested_bounds
from megatron_fastmix.report.summary import final_table
from megatron_fastmix.result.learned_group import LearnedGroup
from megatron_fastmix.result.mixture_file import read_mixture, write_mixture
from megatron_fastmix.result.over_seeds import average
from megatron_fastmix.search.outcome import learned_groups
from megatron_fastmix.search.start_mixture import prior_weights, start_mixture

NAMES = ["py", "c", "web", "books"]
LABELS = ["code", "code", "web", "books"]
SIZES = [300, 100, 500, 50]


def grouped(**changes) -> Mixture:
    config = MixtureConfig(**{"learn": "groups", "lr": 0.3} | changes)
    return Mixture(NAMES, config, groups=Grouping.of(LABELS, SIZES))


def test_the_gradient_on_a_groups_logit_equals_autograd():
    generator = np.random.default_rng(0)
    groups = Grouping.of(LABELS, SIZES)
    products, logits = generator.normal(size=4), generator.normal(size=3)
    y = torch.tensor(logits, requires_grad=True)
    alpha = torch.softmax(y, 0)[groups.members] * torch.tensor(groups.shares)
    (expected,) = torch.autograd.grad(-alpha @ torch.tensor(products), y)
    parts = groups.parts(np.ones(4, bool))
    found = logit_gradient(
        -groups.mean(parts, products), torch.softmax(y, 0).detach().numpy(), np.ones(3, bool)
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)
    # The sum of what its sources' own logits would have is the same.
    own = logit_gradient(-products, alpha.detach().numpy(), np.ones(4, bool))
    np.testing.assert_allclose(groups.sums(own), expected.numpy(), rtol=1e-12)


def test_shares_inside_a_group_stay_and_groups_start_even():
    mixture = grouped()
    np.testing.assert_allclose(mixture.weights, [0.25, 1 / 12, 1 / 3, 1 / 3])
    for step in range(200):
        mixture.update(np.array([-1.0, 0.5, np.sin(step)]))
        assert mixture.weights[0] / mixture.weights[1] == pytest.approx(3, rel=1e-12)
    assert mixture.weights[:2].sum() > 0.95


def test_groups_of_one_source_move_bit_for_bit_as_sources_do():
    single = Mixture(NAMES, MixtureConfig(learn="groups"), groups=Grouping.of(NAMES, SIZES))
    plain = Mixture(NAMES, MixtureConfig())
    for step in range(20):
        h = np.random.default_rng(step).normal(size=4)
        single.update(h)
        plain.update(h)
    assert single.logits.tobytes() == plain.logits.tobytes()


def test_a_group_with_a_part_of_its_sources_in_the_probe_moves_by_that_part():
    groups = Grouping.of(LABELS, SIZES)
    seen = np.array([False, True, True, False])
    parts = groups.parts(seen)
    assert parts.tolist() == [0, 1, 1, 0]
    assert groups.seen(seen).tolist() == [True, True, False]
    values = np.array([np.nan, 2.0, 3.0, np.nan])
    assert groups.mean(parts, values).tolist() == [2.0, 3.0, 0.0]


def test_the_error_of_a_group_is_that_of_its_samples():
    groups = Grouping.of(["g", "g"], [1, 1])
    generator = np.random.default_rng(0)
    counts = np.array([8.0, 8.0])
    errors = []
    means = []
    for _ in range(2000):
        draws = generator.normal([[0.0], [1.0]], 1.0, (2, 8))
        error = draws.std(axis=1, ddof=1) / np.sqrt(8)
        parts = groups.parts(np.ones(2, bool))
        errors.append(groups.mean_error(parts, draws.mean(axis=1), error, counts)[0])
        means.append(groups.mean(parts, draws.mean(axis=1))[0])
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.05)


def test_resume_is_bitwise_and_refused_for_other_groups():
    straight, first = grouped(), grouped()
    gradients = np.random.default_rng(1).normal(size=(6, 3))
    for h in gradients:
        straight.update(h)
    for h in gradients[:3]:
        first.update(h)
    second = grouped()
    second.load_state(json.loads(json.dumps(first.state())))
    for h in gradients[3:]:
        second.update(h)
    assert second.logits.tobytes() == straight.logits.tobytes()
    other = Mixture(NAMES, MixtureConfig(learn="groups"), groups=Grouping.of(LABELS, [1, 1, 1, 1]))
    with pytest.raises(CheckpointError, match=r"shares .* \[0\.75, 0\.25"):
        other.load_state(first.state())
    with pytest.raises(CheckpointError, match="groups"):
        Mixture(NAMES, MixtureConfig()).load_state(first.state())


def test_the_projection_onto_nested_bounds_is_the_nearest_in_kl():
    generator = np.random.default_rng(3)
    members = np.array([0, 0, 0, 1, 1, 2])
    lower, upper = np.array([0.1, 0, 0, 0, 0, 0]), np.array([1, 0.05, 1, 1, 1, 1.0])
    group_lower, group_upper = np.array([0.0, 0.5, 0.0]), np.array([0.3, 1.0, 1.0])
    weights = np.array([0.2, 0.3, 0.3, 0.05, 0.05, 0.1])

    def admits(x: np.ndarray) -> bool:
        sums = np.bincount(members, x)
        inside = (x >= lower - 1e-9) & (x <= upper + 1e-9)
        return bool(
            inside.all()
            and (sums >= group_lower - 1e-9).all()
            and (sums <= group_upper + 1e-9).all()
        )

    found = project_onto_nested_bounds(weights, lower, upper, members, group_lower, group_upper)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert admits(found)
    best = found @ np.log(found / weights)
    near = 0
    for _ in range(4000):
        step = generator.normal(size=6) * 0.02
        x = found + step - step.mean()
        if (x > 0).all() and admits(x):
            near += 1
            assert x @ np.log(x / weights) >= best - 1e-9
    assert near > 20
    assert project_onto_nested_bounds(found, lower, upper, members, group_lower, group_upper).sum()


@pytest.fixture
def grouped_values(search_values: dict) -> dict:
    """`forward` and `backward` are the group `runs`."""
    for source in search_values["sources"][:2]:
        source["group"] = "runs"
    return search_values


def load(values: dict) -> SearchConfig:
    return strict_yaml.from_dict(SearchConfig, values)


@pytest.mark.parametrize("learn", ["sources", "groups"])
def test_bounds_by_group_hold(grouped_values, learn):
    grouped_values["mixture"] |= {"learn": learn, "lr": 1.0}
    grouped_values["groups"] = [{"name": "runs", "min_weight": 0.2, "max_weight": 0.6}]
    mixture = start_mixture(load(grouped_values), [100, 300, 50])
    size = len(mixture.logit_weights)
    for direction in (-1.0, 1.0):
        for _ in range(30):
            mixture.update(direction * np.array([1.0, 0.5, -1.0] if size == 3 else [1.0, -1.0]))
            assert 0.2 - 1e-9 <= mixture.weights[:2].sum() <= 0.6 + 1e-9
        assert mixture.weights[:2].sum() == pytest.approx(0.6 if direction < 0 else 0.2)


def test_a_sources_bound_is_its_groups_where_shares_are_fixed(grouped_values):
    grouped_values["mixture"] |= {"learn": "groups", "lr": 1.0}
    grouped_values["sources"][0]["max_weight"] = 0.1
    mixture = start_mixture(load(grouped_values), [100, 300, 50])
    for _ in range(20):
        mixture.update(np.array([-1.0, 1.0]))
    np.testing.assert_allclose(mixture.weights, [0.1, 0.3, 0.6])
    grouped_values["groups"] = [{"name": "runs", "min_weight": 0.5}]
    with pytest.raises(ConfigError, match=r"group runs: .* 0\.5 or more and of 0\.4 or less"):
        start_mixture(load(grouped_values), [100, 300, 50])


def test_priors_by_group_have_the_starts_shares_inside(grouped_values):
    grouped_values["objective"] = {"entropy_weight": 1e-6}
    grouped_values["mixture"]["learn"] = "groups"
    grouped_values["groups"] = [
        {"name": "runs", "prior_weight": 3.0},
        {"name": "noise", "prior_weight": 1.0},
    ]
    config = load(grouped_values)
    found = prior_weights(config, start_mixture(config, [100, 300, 50]).groups)
    assert found == pytest.approx([0.75, 2.25, 1.0])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"groups": [{"name": "rnus"}]}, r"groups: found \['rnus'\].*'noise', 'runs'"),
        ({"groups": [{"name": "runs"}, {"name": "runs"}]}, "may occur once"),
        ({"groups": [{"name": "runs", "max_weight": 0.0}]}, "group runs: min_weight"),
        ({"groups": [{"name": "runs", "prior_weight": 1.0}]}, r"\['noise'\] lack it"),
        (
            {"groups": [{"name": n, "prior_weight": 1.0} for n in ("runs", "noise")]},
            "objective.entropy_weight",
        ),
        (
            {"groups": [{"name": n, "max_weight": 0.4} for n in ("runs", "noise")]},
            "nor the largest to less",
        ),
    ],
)
def test_groups_that_cannot_be_are_refused(grouped_values, changes, told):
    with pytest.raises(ConfigError, match=told):
        load(grouped_values | changes)


def test_learning_groups_needs_two(search_values):
    search_values["mixture"]["learn"] = "groups"
    with pytest.raises(ConfigError, match="no source names its group"):
        load(search_values)
    for source in search_values["sources"]:
        source["group"] = "all"
    with pytest.raises(ConfigError, match="nothing to learn"):
        load(search_values)
    search_values["sources"][0].pop("group")
    search_values["sources"][0]["name"] = "all"
    with pytest.raises(ConfigError, match="rename the group"):
        load(search_values)


@pytest.mark.parametrize("learn", ["sources", "groups"])
def test_the_advantage_of_a_group_is_the_mean_of_its_sources(learn):
    groups = Grouping.of(["g", "g", "h"], [1, 3, 1])
    config = MixtureConfig(learn=learn, lr=0.0, averaging_fraction=1.0, initial_weights=(1, 3, 4))
    mixture = Mixture(["a", "b", "c"], config, groups=groups)
    of_sources = np.array([0.4, 0.8, -0.7])  # Σ α_k A_k = 0
    for _ in range(8):
        advantage = of_sources if learn == "sources" else np.array([0.7, -0.7])
        mixture.update(np.zeros(len(advantage)), None, advantage)
    found = learned_groups(mixture)
    assert [group.name for group in found] == ["g", "h"]
    assert found[0].sources == ("a", "b")
    assert [group.advantage for group in found] == pytest.approx([0.7, -0.7])
    assert [group.learned for group in found] == [learn == "groups"] * 2


@pytest.mark.parametrize("learn", ["sources", "groups"])
def test_a_group_at_its_bound_lends_the_others_no_advantage(learn):
    groups = Grouping.of(["g", "h", "i"], [1, 1, 1])
    config = MixtureConfig(learn=learn, lr=0.0, averaging_fraction=1.0)
    bounds = ([0.0, 0.0, 0.2], [1.0, 1.0, 1.0])
    start = dataclasses.replace(config, initial_weights=(4, 4, 2))
    mixture = Mixture(["a", "b", "c"], start, groups=groups, group_bounds=bounds)
    gains = np.array([0.0, 0.0, -1.0])
    for _ in range(8):
        mixture.update(np.zeros(3), None, gains - mixture.weights @ gains)
    found = [group.advantage for group in learned_groups(mixture)]
    assert found == pytest.approx([0.0, 0.0, -1.0])
    if learn == "groups":
        assert found == pytest.approx(mixture.optimality().advantage)


def test_groups_are_in_the_file_the_table_and_the_average(make_mixture, tmp_path):
    def made(weights: dict[str, float], seed: int):
        groups = (
            LearnedGroup(
                name="code",
                sources=("py", "c"),
                learned=True,
                weight_std=0.02,
                advantage=0.5,
                advantage_standard_error=0.1,
            ),
            LearnedGroup(name="web", sources=("web",), learned=True, weight_std=0.02),
        )
        return dataclasses.replace(make_mixture(weights), groups=groups, seed=seed)

    one = made({"py": 0.3, "c": 0.1, "web": 0.6}, 1)
    write_mixture(tmp_path / "mixture.json", one)
    assert read_mixture(tmp_path) == one
    written = json.loads((tmp_path / "mixture.json").read_text())["groups"]
    assert [group["weight"] for group in written] == pytest.approx([0.4, 0.6])
    both = average([one, made({"py": 0.6, "c": 0.2, "web": 0.2}, 2)])
    assert both.groups[0].weight_std == pytest.approx(0.4 / 2**0.5)
    assert both.groups[0].advantage == 0.5
    lines = final_table(both, blend_txt=None, blend_json=None).splitlines()
    (line,) = [line for line in lines if line.startswith("code")]
    assert line.split()[1:4] == ["2", "0.6667", "0.6000"]


def test_a_group_at_its_bound_is_judged_inside_and_not_against_the_others():
    groups = Grouping.of(["g", "g", "h", "h"], [1, 1, 1, 1])
    config = MixtureConfig(lr=0.0, averaging_fraction=1.0)
    noise = np.random.default_rng(0).normal(size=(80, 4)) * 0.01

    def verdict(products: np.ndarray, group_bounds) -> str:
        mixture = Mixture(list("abcd"), config, groups=groups, group_bounds=group_bounds)
        for each in noise:
            gains = products + each
            mixture.update(np.zeros(4), None, gains - mixture.weights @ gains)
        return mixture.optimality().status

    bounds = ([0.0, 0.0], [0.5, 1.0])  # α is even, so that g is at its largest weight
    assert verdict(np.array([1.0, 1.0, 0.0, 0.0]), bounds) == "settled"
    assert verdict(np.array([1.0, 1.0, 0.0, 0.0]), None) == "not_optimal"
    assert verdict(np.array([1.5, 0.5, 0.0, 0.0]), bounds) == "not_optimal"
    # A bound that the products push away from excuses nothing.
    assert verdict(np.array([-1.0, -1.0, 0.0, 0.0]), bounds) == "not_optimal"
    at_least = ([0.5, 0.0], [1.0, 1.0])
    assert verdict(np.array([-1.0, -1.0, 0.0, 0.0]), at_least) == "settled"
    assert verdict(np.array([1.0, 1.0, 0.0, 0.0]), at_least) == "not_optimal"

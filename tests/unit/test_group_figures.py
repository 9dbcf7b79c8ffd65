"""What is logged of groups of sources, and of sources that no probe held."""

import numpy as np
import pytest

from megatron_fastmix.config import load_config
from megatron_fastmix.hypergradient import Products
from megatron_fastmix.mixture.grouping import Grouping
from megatron_fastmix.mixture.optimality import advantages
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.run.sinks import open_sinks
from megatron_fastmix.search.group_figures import group_evidence, group_losses
from megatron_fastmix.search.outer_step import OuterResult
from megatron_fastmix.search.reporter import Reporter
from megatron_fastmix.search.start_mixture import prior_weights, start_mixture
from megatron_fastmix.search.unseen import Unseen
from tests.distributed.searches import load

GROUPS = Grouping.of(["code", "code", "web", "books"], [1, 1, 1, 1])
ALPHA = np.array([0.1, 0.3, 0.4, 0.2])


def evidence(values, errors, counts):
    products = Products(
        values=np.array(values), standard_error=np.array(errors), counts=np.array(counts)
    )
    advantage, _ = advantages(products.values, products.standard_error, ALPHA, products.seen)
    return group_evidence(GROUPS, ALPHA, products, advantage), advantage


def test_a_groups_advantage_is_the_weighted_mean_of_its_sources_with_the_error_of_that_sum():
    values, errors = [1.0, 3.0, -2.0, 0.5], [0.1, 0.2, 0.3, 0.4]
    found, advantage = evidence(values, errors, [4.0] * 4)
    assert found.advantage[0] == pytest.approx(0.25 * advantage[0] + 0.75 * advantage[1])
    assert found.advantage[1:].tolist() == pytest.approx(advantage[2:].tolist())
    # A of `code` is linear in the products: Σ (share − α)·p of its own, −α·p of the others.
    factors = np.array([0.25, 0.75, 0, 0]) - ALPHA
    assert found.standard_error[0] == pytest.approx(np.sqrt(((factors * errors) ** 2).sum()))
    assert factors @ values == pytest.approx(found.advantage[0])


def test_a_group_without_evidence_has_no_advantage():
    found, _ = evidence([1.0, 3.0, 0.0, 0.5], [0.1, 0.2, np.nan, 0.4], [4.0, 4.0, 0.0, 4.0])
    assert np.isfinite(found.advantage).tolist() == [True, False, True]
    assert np.isfinite(found.standard_error).tolist() == [True, False, True]


def test_a_groups_loss_is_that_of_its_samples():
    losses = np.array([4.0, 1.0, np.nan, 2.0])
    found = group_losses(GROUPS, losses, np.array([1.0, 2.0, 0.0, 5.0]))
    assert found[[0, 2]].tolist() == [2.0, 2.0]
    assert np.isnan(found[1])


@pytest.mark.parametrize("learn", ["sources", "groups"])
def test_the_metrics_have_lines_by_group(search_values, tmp_path, capsys, learn):
    for source in search_values["sources"][:2]:
        source["group"] = "runs"
    config = load(search_values, **{"mixture.learn": learn})
    mixture = start_mixture(config, [300, 100, 50])
    before = mixture.weights
    trivial = mixture.grouping.is_trivial
    own = np.array([0.5, -0.25, np.nan])
    of_groups = own if trivial else np.array([0.375, -0.25])
    logits = len(mixture.grouping.names)
    mixture.update(np.linspace(-1, 1, logits))
    result = OuterResult(
        target_losses=np.array([5.0]),
        target_weights=np.array([1.0]),
        products=Products(
            values=np.array([1.0, 0.0, 0.0]),
            standard_error=np.array([0.1, 0.1, np.nan]),
            counts=np.array([5.0, 5.0, 0.0]),
        ),
        target_products=None,
        noise_to_signal=None,
        gradient=np.zeros(3),
        advantage=own,
        advantage_standard_error=np.full(3, 0.1),
        group_seen=np.array([True, True, False]) if trivial else np.array([True, False]),
        group_advantage=of_groups,
        group_advantage_standard_error=np.full(logits, 0.1),
        lr=0.1,
        seconds=0.0,
    )
    sinks = open_sinks(config, RunFolder(tmp_path), 0)
    with Reporter(config, mixture, sinks, 0, tokens=0) as report:
        losses, counts = np.array([4.0, 1.0, np.nan]), np.array([1.0, 2.0, 0.0])
        report.inner(1, 2.0, losses, 1e-3, None, 320, counts=counts)
        for _ in range(3):
            report.outer(1, result)
        report.end(1, complete=True)
    _, inner, outer, *_ = read_metrics(tmp_path / "metrics.jsonl")
    assert inner["group_loss"] == {"runs": 2.0, "noise": None}
    assert outer["group_weights"]["runs"] == pytest.approx(mixture.weights[:2].sum())
    share = before[:2] / before[:2].sum()
    expected = [share @ own[:2], None] if trivial else [0.375, -0.25]
    assert list(outer["group_advantage"].values()) == [pytest.approx(expected[0]), expected[1]]
    # Of the sources with evidence `runs` has all, and so gains nothing over them.
    error = outer["group_advantage_standard_error"]["runs"]
    assert error == pytest.approx(0.0 if trivial else 0.1)
    said = capsys.readouterr().out
    assert said.count("the probe held no sample of noise;") == 1
    assert said.count("of 3 outer steps the probe held no sample of noise in 3") == 1


def test_a_run_without_groups_has_no_such_keys(config_file, tmp_path):
    config = load_config(config_file)
    sinks = open_sinks(config, RunFolder(tmp_path), 0)
    mixture = start_mixture(config, [1, 1, 1])
    with Reporter(config, mixture, sinks, 0, tokens=0) as report:
        report.inner(1, 4.0, np.full(3, 4.0), 1e-3, None, 320, counts=np.ones(3))
    assert "group_loss" not in read_metrics(tmp_path / "metrics.jsonl")[1]


def test_what_a_probe_lacks_is_said_once_each_and_counted():
    unseen = Unseen(["a", "b", "c", "d", "e"], None)
    assert unseen.step(np.ones(5, bool)) is None
    assert "no sample of b; its logit" in str(unseen.step(np.array([1, 0, 1, 1, 1], bool)))
    assert unseen.step(np.array([1, 0, 1, 1, 1], bool)) is None
    assert "no sample of a, c, d and 1 more; their" in str(unseen.step(np.zeros(5, bool)))
    end = "of 4 outer steps the probe held no sample of b in 3, a in 1, c in 1 and 2 more"
    assert unseen.total() == end
    assert Unseen(["a"], None).total() is None


def test_a_drawn_probe_says_at_the_end_what_it_never_held():
    unseen = Unseen(["a", "b", "c"], 2)
    assert "a probe of 2 samples has none of 1 of 3" in str(unseen.step(np.array([1, 1, 0], bool)))
    assert unseen.step(np.array([0, 1, 0], bool)) is None
    assert "none of 2 probes of 2 samples held one of c;" in str(unseen.total())
    unseen.step(np.ones(3, bool))
    assert unseen.total() is None


def test_bounds_of_a_source_as_its_own_group_hold(search_values):
    """`groups` may name a source that is in none, also where no source names a group."""
    search_values["groups"] = [{"name": "noise", "max_weight": 0.05}]
    mixture = start_mixture(load(search_values), [1, 1, 1])
    assert mixture.weights[2] <= 0.05 + 1e-12
    for _ in range(20):
        mixture.update(np.array([0.5, 0.5, -1.0]))
    assert mixture.weights[2] == pytest.approx(0.05)


def test_a_prior_of_every_source_as_its_own_group_is_the_prior(search_values):
    search_values["objective"] = {"entropy_weight": 1e-6}
    names = [source["name"] for source in search_values["sources"]]
    search_values["groups"] = [
        {"name": name, "prior_weight": 3 if name == names[0] else 1} for name in names
    ]
    config = load(search_values)
    found = prior_weights(config, start_mixture(config, [1, 1, 1]).groups)
    assert found == [3.0, 1.0, 1.0]

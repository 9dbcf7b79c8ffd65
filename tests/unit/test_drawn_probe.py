"""The probe of fixed size: whole, without bias, and a function of seed and step."""

import numpy as np
import pytest

from megatron_fastmix.batch.drawn_probe import draw_counts, draw_probe, generator_of
from megatron_fastmix.mixture.grouping import Grouping


def test_counts_are_rounded_expectations_and_have_them_as_means():
    expected = np.array([0.3, 2.5, 0.0, 1.2, 4.0])
    random = np.random.default_rng(0)
    counts = np.array([draw_counts(expected, random) for _ in range(3000)])
    assert (counts.sum(axis=1) == 8).all()
    assert (counts >= np.floor(expected)).all()
    assert (counts <= np.ceil(expected)).all()
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.04)


@pytest.mark.parametrize("total", [16, 10, 3])
def test_the_mean_over_a_groups_samples_is_free_of_bias(total):
    groups = Grouping.of(["a"] * 5 + ["b"] * 2 + ["c"] * 3 + ["d"], np.arange(1, 12))
    values = np.random.default_rng(5).normal(size=11)
    truth = groups.mean(groups.parts(np.ones(11, bool)), values)
    found = []
    for step in range(3000):
        counts = draw_probe(total, groups, generator_of(7, step, "probe"))
        assert counts.sum() == total
        by_group = groups.sums(counts.astype(float))
        assert by_group.max() - by_group.min() <= 1
        means = groups.mean(groups.parts(counts > 0, counts), values)
        found.append(np.where(by_group > 0, means, np.nan))
    np.testing.assert_allclose(np.nanmean(found, axis=0), truth, atol=0.07)


def test_a_draw_is_a_function_of_seed_and_step():
    groups = Grouping.singletons([str(k) for k in range(200)])
    one, again, other = (
        draw_probe(100, groups, generator_of(1, step, "probe")) for step in (4, 4, 5)
    )
    assert one.tolist() == again.tolist()
    assert one.tolist() != other.tolist()
    # Nor are the same sources always seen together.
    draws = [draw_probe(100, groups, generator_of(1, step, "probe")) for step in range(800)]
    both = np.mean([counts[0] > 0 and counts[1] > 0 for counts in draws])
    assert both == pytest.approx(0.25, abs=0.06)

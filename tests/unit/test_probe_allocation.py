"""How many probe samples each source gets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fastmix.batch.probe_allocation import FEWEST, allocate
from megatron_fastmix.config import HypergradientConfig
from megatron_fastmix.errors import ConfigError


def test_even_gives_each_source_as_many():
    assert allocate(np.array([0.9, 0.1, 0.0]), 5, "even").tolist() == [5, 5, 5]


def test_weighted_shares_out_what_exceeds_two_of_each():
    assert allocate(np.array([0.5, 0.25, 0.25]), 6, "weighted").tolist() == [8, 5, 5]
    # 0.6 and 0.4 of 3: the larger remainder gets the third.
    assert allocate(np.array([0.6, 0.4, 0.0]), 3, "weighted").tolist() == [4, 3, 2]


@given(
    weights=st.lists(st.floats(1e-9, 1.0), min_size=2, max_size=40),
    per_source=st.integers(3, 30),
    allocation=st.sampled_from(["even", "weighted"]),
)
def test_the_cost_is_the_same_and_no_source_is_left_out(weights, per_source, allocation):
    counts = allocate(np.array(weights), per_source, allocation)
    assert counts.sum() == per_source * len(weights)
    assert counts.min() >= FEWEST


def test_weighted_needs_more_than_two_of_each():
    with pytest.raises(ConfigError, match="found 2; probe_allocation weighted gives 2 to each"):
        HypergradientConfig(probe_allocation="weighted", probe_samples_per_source=2)

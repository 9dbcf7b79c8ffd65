"""The mixtures that a comparison trains."""

from decimal import Decimal

import pytest

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.comparison.candidates import make_candidates, select

TOKENS = {"a": 100, "b": 300, "c": 600}


def candidates(draws=4, seed=0):
    learned = {"learned": ({"a": 0.99999, "b": 0.00001, "c": 0.0}, 5.0)}
    return make_candidates(TOKENS, learned, random_draws=draws, draw_seed=seed)


def by_name(found):
    return {candidate.name: candidate for candidate in found}


def test_every_mixture_sums_to_one_exactly():
    for candidate in candidates():
        assert sum(map(Decimal, candidate.weights.values())) == 1
        assert all(float(weight) > 0 for weight in candidate.weights.values())


def test_weights():
    found = by_name(candidates())
    assert found["learned"].weights == {"a": "1.0000"}  # what rounds to 0 is left out
    assert found["learned"].search_flops == 5.0
    assert found["uniform"].weights == {"a": "0.3334", "b": "0.3333", "c": "0.3333"}
    assert found["proportional"].weights == {"a": "0.1000", "b": "0.3000", "c": "0.6000"}
    assert found["single:b"].weights == {"b": "1.0000"}


def test_draws_depend_on_the_seed_and_not_on_their_number():
    few, many, other = by_name(candidates(2)), by_name(candidates(9)), by_name(candidates(2, 1))
    assert few["random:1"] == many["random:1"]
    assert few["random:1"].weights != few["random:0"].weights
    assert few["random:1"].weights != other["random:1"].weights


def test_keys_tell_kinds_and_weights_apart():
    keys = [candidate.key for candidate in candidates()]
    assert len(set(keys)) == len(keys)


def test_selection_by_kind_and_name():
    found = select(candidates(), ["random", "single:a"])
    assert [c.name for c in found] == ["single:a", *(f"random:{i}" for i in range(4))]
    assert len(select(candidates(), [])) == 1 + 2 + 3 + 4
    with pytest.raises(ConfigError, match=r"--only: found 'unifrom'; choose among .*uniform"):
        select(candidates(), ["unifrom"])

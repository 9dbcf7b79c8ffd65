"""The orders of draws are pure functions, balanced in every block, without repeats in an epoch."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fastmix.blend.order import spread_order as spread_order_module
from megatron_fastmix.blend.order.draw_order import epoch_sample, permute
from megatron_fastmix.blend.order.shuffled_order import ShuffledOrder
from megatron_fastmix.blend.order.spread_order import SpreadOrder, visited_sample
from megatron_fastmix.errors import DataError

weights = st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda w: sum(w) > 0.01)


def spread_order(seed, block_size, weights, capacity=None, sizes=None):
    sizes = [97 + k for k in range(len(weights))] if sizes is None else sizes
    return SpreadOrder(seed, block_size, weights, sizes, capacity)


def draws_of(order, first, last):
    return [order.draw(i) for i in range(first, last)]


@given(weights=weights, block_size=st.integers(1, 40), seed=st.integers(0, 5))
@settings(max_examples=60)
def test_every_block_is_within_one_of_the_shares(weights, block_size, seed):
    order = spread_order(seed, block_size, weights)
    shares = np.array(weights) / sum(weights)
    for block in (0, 1, 7, 10**6):
        draws = draws_of(order, block * block_size, (block + 1) * block_size)
        counts = np.bincount([d.source for d in draws], minlength=len(weights))
        assert np.all(np.abs(counts - shares * block_size) < 1 + 1e-6)
        assert np.all(counts[shares == 0] == 0)


def test_whole_shares_are_met_exactly_in_every_block():
    order = spread_order(1, 12, [0.5, 0.25, 0.25])
    for first in range(0, 600, 12):
        sources = [d.source for d in draws_of(order, first, first + 12)]
        assert np.bincount(sources).tolist() == [6, 3, 3]


@given(weights=weights, log_size=st.integers(3, 8), seed=st.integers(0, 3))
@settings(max_examples=30)
def test_windows_that_are_no_blocks_are_nearly_even(weights, log_size, seed):
    block_size = 2**log_size
    order = spread_order(seed, block_size, weights)
    shares = np.array(weights) / sum(weights)
    sources = [d.source for d in draws_of(order, 0, 12 * block_size)]
    excess = np.cumsum(np.eye(len(shares))[sources] - shares, axis=0)
    widest = np.max(excess, axis=0) - np.min(excess, axis=0)
    # A shuffled order departs like √W, which is 8 times more for the largest W here.
    assert np.all(widest < 3 + log_size)


@given(
    weights=weights,
    block_size=st.integers(1, 20),
    changes=st.lists(st.tuples(st.integers(0, 3), weights), max_size=3),
    caps=st.lists(st.none() | st.integers(0, 60), min_size=12, max_size=12),
)
@settings(max_examples=80)
def test_ordinals_count_up_and_counts_are_counted_draws(weights, block_size, changes, caps):
    count = len(weights)
    caps = [None, *caps[1:count]]  # the first has no cap, so that there is always one to draw
    weights = [weights[0] + 0.1, *weights[1:]]
    order = spread_order(3, block_size, weights, caps)
    at = 0
    for blocks, changed in changes:
        at += blocks * block_size
        order.change(np.resize([0.1, *changed], count), at)
    seen: list[list[int]] = [[] for _ in range(count)]
    for i in range(8 * block_size):
        assert order.counts_before(i) == [len(ordinals) for ordinals in seen]
        draw = order.draw(i)
        seen[draw.source].append(draw.ordinal)
    for ordinals, cap in zip(seen, caps, strict=True):
        assert sorted(ordinals) == list(range(len(ordinals)))
        assert cap is None or len(ordinals) <= cap


@given(weights=weights, block_size=st.integers(1, 40), every=st.integers(1, 20))
@settings(max_examples=30)
def test_a_change_to_the_same_weights_changes_no_draw(weights, block_size, every):
    still, changed = (spread_order(4, block_size, weights) for _ in range(2))
    for block in range(0, 60, every):
        changed.change(weights, block * block_size)
    end = 60 * block_size
    assert draws_of(still, 0, end) == draws_of(changed, 0, end)
    assert [changed.locate(i) for i in range(end)] == [still.locate(i) for i in range(end)]
    assert changed.counts_before(end) == still.counts_before(end)


@pytest.mark.parametrize("every", [1, 3, 20])
@pytest.mark.parametrize("motion", [0.0, 0.02])
def test_draws_follow_weights_that_change_often(every, motion):
    # Many sources of less than one draw a block: roundings that came back with every change gave
    # some nothing and others twice their share.
    generator = np.random.default_rng(0)
    logits, expected = np.log([0.9, *[0.1 / 23] * 23]), np.zeros(24)
    order = None
    for block in range(0, 2000, every):
        weights = np.exp(logits) / np.exp(logits).sum()
        if order is None:
            order = spread_order(1, 16, weights)
        order.change(weights, 16 * block)
        expected += 16 * min(every, 2000 - block) * weights
        logits = logits + motion * generator.normal(size=24)
    error = np.array(order.counts_before(16 * 2000)) - expected
    assert np.abs(error).max() < (20 if motion else 3)


@pytest.mark.parametrize("size", [2**10, 2**20])
def test_tiny_last_weights_do_not_lift_an_edge_past_the_block(size):
    for seed in range(20):
        drawn = np.random.default_rng(seed).random(10)
        order = spread_order(seed, size, [*drawn, 1e-22, 1e-22, 1e-22])
        assert order.locate(size - 1)[0] < 10


@given(
    weights=weights,
    block_size=st.integers(1, 50),
    at=st.integers(0, 2**45),
    seed=st.integers(0, 3),
    changed=st.booleans(),
)
@settings(max_examples=300)
def test_the_compiled_path_finds_the_sample_of_the_draw(weights, block_size, at, seed, changed):
    assert spread_order_module._draws is not None, "not compiled; is there a C compiler?"
    order = spread_order(seed, block_size, weights)
    if changed:
        order.change([w + 0.5 for w in weights], 3 * block_size)
    for i in [at, at + 1, *range(0, 8 * block_size, 3), at // 1000, at // 10**6]:
        source, ordinal = order.draw(i)
        size = 97 + source
        assert order.locate(i) == (source, visited_sample(seed, source, ordinal, size))


def test_a_source_of_any_size_is_found_by_the_compiled_path():
    for size in [1, 2, 3, 4, 99, 10**6, 2**32 + 1, 2**53 + 1, 2**62 - 1]:
        order = spread_order(5, 8, [1.0], sizes=[size])
        for i in [0, 1, 7, 10**6, 10**10, 2**33 - 1]:
            assert order.locate(i) == (0, visited_sample(5, 0, order.draw(i).ordinal, size))


def test_many_segments_are_located_with_and_without_the_extension(monkeypatch):
    def order():
        made = spread_order(2, 4, [1, 1, 1], [40, None, None])
        for change in range(1, 40):
            made.change([1, change, 2], at_draw=8 * change)
        return made

    compiled, plain = order(), order()
    indices = np.random.default_rng(0).integers(0, 600, 300).tolist()
    found = [compiled.locate(i) for i in indices]
    assert len(compiled._compiled) <= 16
    again = pickle.loads(pickle.dumps(compiled))
    monkeypatch.setattr(spread_order_module, "_draws", None)
    assert [plain.locate(i) for i in indices] == found
    assert [again.locate(i) for i in indices] == found
    assert plain._entered is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_size": 0},
        {"block_size": 1 << 25},
        {"stride": 9},
        {"start": -1},
        {"end": 1 << 32},
        {"turn": 1 << 32},
        {"edges": b""},
        {"edges": b"12345678"},
        {"base": b"1"},
        {"sizes": np.array([0, 1]).tobytes()},
        {"edges": np.array([8 << 32, 4 << 32]).tobytes()},
    ],
)
def test_a_stretch_that_cannot_be_is_refused(wrong):
    right = {
        "block_size": 8,
        "stride": 5,
        "turn": 0,
        "start": 0,
        "end": 9,
        "edges": np.array([4 << 32, 8 << 32]).tobytes(),
        "base": np.array([0, 0]).tobytes(),
        "sizes": np.array([3, 3]).tobytes(),
        "epoch_key": lambda source, epoch: 1 / 0,
    }
    make = spread_order_module._draws.Stretch
    with pytest.raises(ZeroDivisionError):
        make(**right).locate(0)
    assert make(**right).locate(9 * 8) is make(**right).locate(-1) is None
    with pytest.raises(ValueError):
        make(**right | wrong)


def test_a_tiny_share_is_served_in_the_long_run():
    share = 3e-7
    counts = spread_order(0, 10, [share, 1 - share]).counts_before(10**9)
    assert abs(counts[0] - 300) < 5
    assert sum(counts) == 10**9


@pytest.mark.parametrize("extreme", [[1e-300, 1.0], [1.0, 1e300], [5e-324, 5e-324], [0, 1e-9]])
def test_extreme_weights_can_be_drawn(extreme):
    order = spread_order(0, 64, extreme)
    shares = np.array(extreme) / max(extreme) / (np.array(extreme) / max(extreme)).sum()
    counts = order.counts_before(64 * 1000)
    assert np.allclose(counts, shares * 64_000, atol=2)


def test_many_sources_can_be_drawn():
    count = 40_000
    order = spread_order(0, 1000, np.ones(count))
    sources = [d.source for d in draws_of(order, 0, count)]
    assert max(np.bincount(sources)) == 2
    assert max(sources) > 39_000
    for draws in (count, 1_000 * count):
        counts = np.array(order.counts_before(draws))
        assert counts.sum() == draws
        assert np.all(np.abs(counts - draws / count) <= 3)


@pytest.mark.parametrize(
    "order", [spread_order(0, 512, np.ones(17)), ShuffledOrder(0, 512, [50] * 17)]
)
def test_a_draw_beyond_ten_billion_is_found_without_its_predecessors(order):
    draw = order.draw(10**10 + 3)
    assert abs(draw.ordinal - 10**10 / 17) < 600
    counts = order.counts_before(10**10)
    assert sum(counts) == 10**10
    assert max(counts) - min(counts) < 20


def test_seed_and_history_decide_the_draws():
    def draws(seed, change=None):
        order = spread_order(seed, 16, [1, 1, 1])
        if change:
            order.change(change, at_draw=32)
        return draws_of(order, 0, 64)

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(1, [3, 1, 1])[:32] == draws(1)[:32]
    assert draws(1, [3, 1, 1])[32:] != draws(1)[32:]


def test_what_was_drawn_before_a_change_does_not_matter():
    fresh, used = (spread_order(4, 8, [1, 2, 3], [40, None, None]) for _ in range(2))
    draws_of(used, 0, 400)
    for order in (fresh, used):
        order.change([3, 2, 1], at_draw=64)
    assert draws_of(fresh, 0, 400) == draws_of(used, 0, 400)
    assert draws_of(pickle.loads(pickle.dumps(used)), 0, 400) == draws_of(used, 0, 400)


@pytest.mark.parametrize("bad", [[0.0, 0.0], [1.0, float("nan")], [-1.0, 2.0], [float("inf"), 1]])
def test_weights_that_are_no_shares_are_refused(bad):
    with pytest.raises(ValueError, match="weights: found"):
        spread_order(0, 4, bad)


def test_a_change_inside_a_block_or_in_the_past_is_refused():
    order = spread_order(0, 4, [1, 1])
    with pytest.raises(ValueError, match="multiple of the block size 4"):
        order.change([1, 2], at_draw=6)
    order.change([1, 2], at_draw=8)
    with pytest.raises(ValueError, match="from 8 on"):
        order.change([1, 3], at_draw=4)
    with pytest.raises(ValueError, match="weights: found 3; expected 2"):
        order.change([1, 3, 1], at_draw=8)


def test_what_a_capacity_removes_goes_to_the_others_in_proportion():
    order = spread_order(0, 100, [0.5, 0.3, 0.2], [1000, None, None])
    counts = order.counts_before(10_000)
    assert counts[0] == 1000
    assert counts[1] == pytest.approx(600 + 8000 * 0.6, abs=3)
    assert counts[2] == pytest.approx(400 + 8000 * 0.4, abs=3)
    assert order.exhausted(10_000) == {0: 2000}
    assert order.exhausted(2_000) == {}


def test_a_capacity_that_ends_inside_a_block_is_used_to_the_last_sample():
    order = spread_order(0, 100, [0.5, 0.5, 0.0], [130, None, None])
    draws = draws_of(order, 0, 400)
    assert [d.source for d in draws].count(0) == 130
    assert [d.source for d in draws[200:300]].count(0) == 30
    assert [d.source for d in draws].count(2) == 0


def test_capacities_end_one_after_the_other_until_nothing_is_left():
    order = spread_order(0, 10, [0.6, 0.3, 0.1], [50, 60, 70])
    draws = draws_of(order, 0, 180)
    assert np.bincount([d.source for d in draws]).tolist() == [50, 60, 70]
    with pytest.raises(DataError, match="after 180 samples every source with a weight"):
        order.draw(180)
    order.change([1, 1, 1], at_draw=60)
    assert sum(order.counts_before(180)) == 180


def test_a_capacity_smaller_than_a_block_counts():
    order = spread_order(0, 1000, [0.9, 0.1], [7, None])
    assert order.counts_before(1000) == [7, 993]


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64))
@settings(max_examples=30)
def test_permutations_are_bijections(size, key):
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))
    epoch = range(key % 9 * size, (key % 9 + 1) * size)
    assert sorted(visited_sample(key, 1, i, size) for i in epoch) == list(range(size))


def _search_sample(ordinal, stream="train"):
    return epoch_sample(7, stream, 2, ordinal, 50)


def _blend_sample(ordinal):
    return visited_sample(7, 2, ordinal, 50)


@pytest.mark.parametrize("sample", [_search_sample, _blend_sample])
def test_epochs_repeat_no_sample_inside_and_reshuffle(sample):
    epochs = [[sample(e * 50 + i) for i in range(50)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert epochs[0] != epochs[1] != epochs[2]


def test_streams_of_the_search_have_orders_of_their_own():
    assert [_search_sample(i) for i in range(50)] != [_search_sample(i, "probe") for i in range(50)]


@given(count=st.integers(1, 12), block_size=st.integers(1, 40), seed=st.integers(0, 5))
@settings(max_examples=30)
def test_the_searchs_blocks_are_even_too(count, block_size, seed):
    order = ShuffledOrder(seed, block_size, [50] * count)
    seen: list[list[int]] = [[] for _ in range(count)]
    for block in range(5):
        assert order.counts_before(block * block_size) == [len(ordinals) for ordinals in seen]
        draws = draws_of(order, block * block_size, (block + 1) * block_size)
        counts = np.bincount([d.source for d in draws], minlength=count)
        assert np.all(np.abs(counts - block_size / count) < 1 + 1e-6)
        for draw in draws:
            seen[draw.source].append(draw.ordinal)
    for ordinals in seen:
        assert sorted(ordinals) == list(range(len(ordinals)))

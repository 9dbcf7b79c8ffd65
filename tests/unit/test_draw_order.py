"""The draw order is a pure function, balanced in every block, and without repeats in an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fastmix.blend.draw_order import DrawOrder, epoch_sample, permute

weights = st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda w: sum(w) > 0.01)


@given(weights=weights, block_size=st.integers(1, 40), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_block_is_within_one_of_the_shares(weights, block_size, seed):
    order = DrawOrder(seed, block_size, weights)
    shares = np.array(weights) / sum(weights)
    for block in (0, 1, 7):
        draws = [order.draw(block * block_size + i).source for i in range(block_size)]
        counts = np.bincount(draws, minlength=len(weights))
        assert np.all(np.abs(counts - shares * block_size) < 1 + 1e-6)
        assert np.all(counts[shares == 0] == 0)


@given(weights=weights, block_size=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_ordinals_of_a_source_count_up_from_zero(weights, block_size):
    order = DrawOrder(3, block_size, weights)
    seen: dict[int, list[int]] = {}
    for i in range(6 * block_size):
        draw = order.draw(i)
        seen.setdefault(draw.source, []).append(draw.ordinal)
    for ordinals in seen.values():
        assert sorted(ordinals) == list(range(len(ordinals)))


def test_prefix_counts_equal_counted_draws_also_across_changes():
    order = DrawOrder(0, 8, [0.5, 0.3, 0.2])
    order.change([0.01, 0.01, 0.98], at_draw=5 * 8)
    order.change([1, 0, 0], at_draw=9 * 8)
    counts = np.zeros(3, int)
    for block in range(20):
        assert order.counts_before_block(block) == counts.tolist()
        for i in range(block * 8, (block + 1) * 8):
            draw = order.draw(i)
            assert draw.ordinal >= 0
            counts[draw.source] += 1


def test_a_tiny_share_is_served_in_the_long_run():
    share = 0.003
    counts = DrawOrder(0, 10, [share, 1 - share]).counts_before_block(100_000)
    assert abs(counts[0] - share * 1_000_000) < 10


def test_a_draw_beyond_ten_billion_is_found_without_its_predecessors():
    order = DrawOrder(0, 512, np.ones(17))
    draw = order.draw(10**10 + 3)
    assert abs(draw.ordinal - 10**10 / 17) < 600
    assert draw == DrawOrder(0, 512, np.ones(17)).draw(10**10 + 3)


def test_seed_and_history_decide_the_draws():
    def draws(seed, change=None):
        order = DrawOrder(seed, 16, [1, 1, 1])
        if change:
            order.change(change, at_draw=32)
        return [order.draw(i) for i in range(64)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(1, [3, 1, 1])[:32] == draws(1)[:32]
    assert draws(1, [3, 1, 1])[32:] != draws(1)[32:]


@pytest.mark.parametrize("bad", [[0.0, 0.0], [1.0, float("nan")], [-1.0, 2.0]])
def test_weights_that_are_no_shares_are_refused(bad):
    with pytest.raises(ValueError, match="weights: found"):
        DrawOrder(0, 4, bad)


def test_a_change_inside_a_block_or_in_the_past_is_refused():
    order = DrawOrder(0, 4, [1, 1])
    with pytest.raises(ValueError, match="multiple of the block size 4"):
        order.change([1, 2], at_draw=6)
    order.change([1, 2], at_draw=8)
    with pytest.raises(ValueError, match="from 8 on"):
        order.change([1, 3], at_draw=4)


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64))
@settings(max_examples=30, deadline=None)
def test_permute_is_a_bijection(size, key):
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_epochs_repeat_no_sample_inside_and_reshuffle():
    epochs = [[epoch_sample(7, "train", 2, e * 50 + i, 50) for i in range(50)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
    assert epochs[0] != epochs[1]
    assert epochs[0] != [epoch_sample(7, "probe", 2, i, 50) for i in range(50)]

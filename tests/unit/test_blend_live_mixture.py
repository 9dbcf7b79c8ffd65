"""The live mixture: its history, what it refuses, and what other processes see of it."""

import json
import logging
import multiprocessing
import time

import numpy as np
import pytest
import torch

from megatron_fastmix.blend import LiveMixture, WeightSchedule
from megatron_fastmix.blend.weight_schedule import Change
from megatron_fastmix.errors import CheckpointError, ConfigError, DataError
from megatron_fastmix.result.mixture_file import write_mixture

START = {"web": 3.0, "code": 1.0}


def make(**changes):
    return LiveMixture(START, **({"block_size": 10} | changes))


def test_weights_are_shares_and_hold_from_their_sample_on():
    mixture = make()
    assert mixture.update({"code": 2.0, "web": 0.0}, at_sample=20) == 20
    assert mixture.weights_at(0).tolist() == mixture.weights_at(19).tolist() == [0.75, 0.25]
    assert mixture.weights_at(20).tolist() == mixture.weights.tolist() == [0, 1]
    assert mixture.loss_weights_at(5).tolist() == [1.5, 0.5]
    assert mixture.loss_weights.tolist() == [0, 2]
    assert [at for at, _ in mixture.history] == [0, 20]


def test_a_sample_inside_a_block_waits_for_its_end_and_is_told(caplog):
    mixture = make()
    with caplog.at_level(logging.WARNING):
        assert mixture.update([1, 1], at_sample=11) == 20
    assert "at_sample 11 is inside a block of 10; the weights change at sample 20" in caplog.text


def test_without_a_sample_it_is_the_next_block_that_nobody_has_drawn():
    mixture = make()
    assert mixture.update([1, 1]) == 0
    assert mixture.note_drawn(0) == 10
    assert mixture.update([1, 2]) == 10
    mixture.note_drawn(9)
    assert mixture.update([2, 1]) == 10
    mixture.note_drawn(34)
    mixture.note_drawn(12)
    assert mixture.drawn == 40
    assert mixture.update([1, 2]) == 40


def test_a_sample_in_the_past_is_refused_with_the_earliest_possible():
    mixture = make()
    mixture.note_drawn(25)
    with pytest.raises(
        ConfigError, match=r"found 20; the blocks before 30 .* earliest possible is 30"
    ):
        mixture.update([1, 1], at_sample=20)
    mixture.update([1, 1], at_sample=50)
    with pytest.raises(ConfigError, match="last change is at 50; the earliest possible is 50"):
        mixture.update([1, 2], at_sample=40)
    assert [at for at, _ in mixture.history] == [0, 50]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "found 1; expected 2"),
        ([0.0, 0.0], "finite shares"),
        ([1.0, float("nan")], "finite shares"),
        ([-1.0, 2.0], "finite shares"),
        ({"web": 1.0}, "expected one for each of web, code"),
        ({"web": 1.0, "code": 1.0, "math": 1.0}, "expected one for each of web, code"),
    ],
)
def test_weights_that_are_no_shares_are_refused(weights, message):
    mixture = make()
    with pytest.raises(ConfigError, match=message):
        mixture.update(weights)
    assert len(mixture.history) == 1


def test_more_changes_than_there_is_place_for_are_refused():
    mixture = make(max_updates=2)
    mixture.update([1, 1])
    mixture.update([1, 2])
    with pytest.raises(ConfigError, match="place for 2 changes, all used"):
        mixture.update([1, 3])


def test_a_state_restores_the_history_bit_for_bit():
    mixture = make()
    mixture.update([0.1, 0.7], at_sample=40)
    state = json.loads(json.dumps(mixture.state_dict()))
    other = LiveMixture({"web": 1, "code": 1}, block_size=10)
    version = other.counter[0]
    other.load_state_dict(state)
    assert other.counter[0] != version
    assert [(at, row.tolist()) for at, row in other.history] == [
        (at, row.tolist()) for at, row in mixture.history
    ]


def test_a_state_of_another_order_of_draws_is_told_after_a_change(caplog):
    state = make()
    state.update([0.1, 0.7], at_sample=40)
    earlier = {k: v for k, v in state.state_dict().items() if k != "draw_order"}
    make().load_state_dict(earlier)
    make().load_state_dict(state.state_dict(), consumed_samples=50)
    assert not caplog.text
    make().load_state_dict(earlier, consumed_samples=50)
    assert "some samples may be read again" in caplog.text


def test_a_resumed_run_keeps_the_weights_of_what_it_has_consumed():
    other = make()
    other.load_state_dict(make().state_dict(), consumed_samples=61)
    assert other.update([1, 2]) == 70


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (LiveMixture({"web": 1, "math": 1}, block_size=10), "names"),
        (LiveMixture(START, block_size=20), "block_size 10, this one 20"),
        (LiveMixture(START, block_size=10, max_updates=1), "has 2 changes, this one place for 1"),
    ],
)
def test_a_state_of_another_mixture_is_refused(other, message):
    mixture = make()
    mixture.update([1, 1])
    mixture.update([1, 2])
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(mixture.state_dict())


def _see(mixture, pipe):
    pipe.send(mixture.weights.tolist())
    pipe.recv()
    mixture.note_drawn(70)
    pipe.send(mixture.weights.tolist())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_see_an_update_and_are_seen(method):
    context = multiprocessing.get_context(method)
    mixture = make()
    here, there = context.Pipe()
    process = context.Process(target=_see, args=(mixture, there))
    process.start()
    assert here.poll(60) and here.recv() == [0.75, 0.25]
    mixture.update([1, 3])
    here.send(None)
    assert here.poll(60) and here.recv() == [0.25, 0.75]
    process.join(60)
    assert process.exitcode == 0
    assert mixture.drawn == 80


class Reader(torch.utils.data.Dataset):
    """Notes its draws, as a blend does."""

    def __init__(self, mixture):
        self.mixture = mixture

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        self.mixture.note_drawn(index)
        return index


def test_what_workers_have_fetched_ahead_delays_an_update():
    mixture = make()
    loader = torch.utils.data.DataLoader(Reader(mixture), batch_size=5, num_workers=2)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    deadline = time.monotonic() + 60
    while mixture.drawn < 40:  # else the last of them may be drawn after the update
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # 15 samples are consumed; 2 workers · 2 batches are fetched ahead or on their way.
    at = mixture.update([1, 1])
    assert 20 <= at <= 50
    assert at >= mixture.drawn
    with pytest.raises(ConfigError, match="DataLoader workers fetch ahead"):
        mixture.update([1, 2], at_sample=10)


def test_a_schedule_makes_a_mixture_and_back(tmp_path):
    schedule = WeightSchedule(
        changes=(
            Change(at_sample=0, weights={"web": 3.0, "code": 1.0}),
            Change(at_sample=25, weights={"code": 1.0, "web": 0.0}),
        )
    )
    schedule.write(tmp_path / "schedule.yaml")
    mixture = LiveMixture.from_schedule(tmp_path / "schedule.yaml", block_size=10)
    assert [(at, row.tolist()) for at, row in mixture.history] == [
        (0, [0.75, 0.25]),
        (30, [0.0, 1.0]),
    ]
    assert [change.at_sample for change in mixture.schedule().changes] == [0, 30]
    mixture.update([1, 1], at_sample=30)
    assert dict(mixture.schedule().changes[1].weights) == {"web": 0.5, "code": 0.5}


def test_a_learned_mixture_is_read_from_its_run_folder(make_mixture, tmp_path):
    write_mixture(tmp_path / "mixture.json", make_mixture({"web": 0.2, "code": 0.8}))
    mixture = LiveMixture.from_mixture_file(tmp_path, block_size=4)
    assert mixture.names == ["web", "code"]
    assert np.allclose(mixture.weights, [0.2, 0.8], rtol=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights: 1", "expected one key, schedule"),
        ("schedule: []", "first entry: found no entry"),
        ("schedule:\n- {at_sample: 5, weights: {a: 1}}", "found 5; expected at_sample: 0"),
        ("schedule:\n- {at_sample: 0}", "expected the keys at_sample and weights"),
        (
            "schedule:\n- {at_sample: 0, weights: {a: x}}",
            r"\[0\].weights.a: expected float",
        ),
        ("schedule:\n- {at_sample: 0, weights: {a: 0}}", r"schedule\[0\].weights: found \[0.0\]"),
        ("schedule:\n- {at_sample: 1.5, weights: {a: 1}}", "found 1.5; expected a whole number"),
        (
            "schedule:\n- {at_sample: 0, weights: {a: 1}}\n- {at_sample: 0, weights: {a: 2}}",
            r"schedule\[1\].at_sample: found 0 after 0",
        ),
        (
            "schedule:\n- {at_sample: 0, weights: {a: 1}}\n- {at_sample: 9, weights: {b: 2}}",
            r"schedule\[1\].weights: found b; every entry names the same sources: a",
        ),
        ("schedule: [", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused_by_place(tmp_path, text, message):
    path = tmp_path / "schedule.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        LiveMixture.from_schedule(path)
    assert str(path) in str(caught.value)

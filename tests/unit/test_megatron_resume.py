"""What a run of Megatron goes on from: its checkpoint's history, and what the flags ask for now."""

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_fastmix import blend
from megatron_fastmix.blend.weight_schedule import Change, WeightSchedule
from megatron_fastmix.errors import CheckpointError, ConfigError
from megatron_fastmix.megatron.options import RunOptions
from megatron_fastmix.megatron.resume import ATTRIBUTE, check_sizes, resumed, run_state
from megatron_fastmix.megatron.run_mixture import RunMixture, other_weights
from megatron_fastmix.megatron.session import Session
from tests.conftest import SOURCES
from tests.unit.test_blend import build

OPTIONS = RunOptions(mixture=Path("r"), max_epochs={"a": 4.0})
ACCEPTING = RunOptions(mixture=Path("r"), max_epochs={"a": 4.0}, accept_changes=True)


def asked(*changes):
    return WeightSchedule(
        changes=tuple(
            Change(at_sample=at, weights=dict(zip("abc", weights, strict=True)))
            for at, weights in changes
        )
    )


def run_mixture(schedule, paths=None):
    paths = paths or {name: (f"/data/{name}",) for name in schedule.names}
    return RunMixture(schedule=schedule, paths=paths)


def go_on(state, schedule, options=OPTIONS, *, consumed=100, seed=1, paths=None):
    now = run_mixture(schedule, paths)
    return resumed(state, now, options, seed=seed, consumed=consumed, block_size=16)


def state_of(schedule, mixture=None, paths=None):
    mixture = mixture or go_on(None, schedule, consumed=0)
    state = run_state(mixture, run_mixture(schedule, paths), OPTIONS, 1, {})
    # Plain values: whatever writes a checkpoint can write them.
    return json.loads(json.dumps(state))


def history(mixture):
    return [(at, row.round(6).tolist()) for at, row in mixture.history]


def test_the_same_flags_go_on_with_what_the_checkpoint_has():
    schedule = asked((0, (2, 1, 1)), (160, (0, 1, 1)))
    first = go_on(None, schedule, consumed=0)
    # A script may move the weights itself; the flags do not know of that.
    first.update({"a": 1.0, "b": 0.0, "c": 0.0}, at_sample=320)
    state = state_of(schedule, first)
    assert history(go_on(state, schedule)) == history(first)
    assert history(first)[-1] == (320, [1.0, 0.0, 0.0])


def test_the_block_size_and_the_order_of_sources_are_the_checkpoints():
    state = state_of(asked((0, (2, 1, 1))))
    reordered = WeightSchedule(
        changes=(Change(at_sample=0, weights={"c": 0.25, "a": 0.5, "b": 0.25}),)
    )
    mixture = resumed(state, run_mixture(reordered), OPTIONS, seed=1, consumed=100, block_size=999)
    assert mixture.block_size == 16
    assert mixture.names == ["a", "b", "c"]
    assert mixture.weights.tolist() == [0.5, 0.25, 0.25]


def test_changes_to_come_may_be_others():
    state = state_of(asked((0, (2, 1, 1)), (160, (0, 1, 1))))
    mixture = go_on(state, asked((0, (2, 1, 1)), (130, (1, 0, 0)), (200, (0, 0, 1))))
    assert history(mixture) == [
        (0, [0.5, 0.25, 0.25]),
        (144, [1.0, 0.0, 0.0]),
        (208, [0.0, 0.0, 1.0]),
    ]


def test_another_past_is_refused_and_named_or_holds_from_here_on(caplog):
    state = state_of(asked((0, (2, 1, 1))))
    other = asked((0, (1, 1, 2)))
    with pytest.raises(
        CheckpointError, match=r"a has 0\.5 from sample 0 on, now 0\.25.*sample 112"
    ):
        go_on(state, other)
    with caplog.at_level(logging.WARNING):
        mixture = go_on(state, other, ACCEPTING)
    assert history(mixture) == [(0, [0.5, 0.25, 0.25]), (112, [0.25, 0.25, 0.5])]
    assert "holds from sample 112 on" in caplog.text


@pytest.mark.parametrize(
    ("options", "seed", "message"),
    [
        (RunOptions(max_epochs={"a": 4.0}, weighting="loss"), 1, "weighting .sampling, now loss"),
        (RunOptions(max_epochs=2.0), 1, r"--fastmix-max-epochs \({'a': 4.0}, now 2.0\)"),
        (OPTIONS, 2, r"--seed \(1, now 2\)"),
    ],
)
def test_what_would_draw_other_samples_is_refused(options, seed, message):
    schedule = asked((0, (2, 1, 1)))
    with pytest.raises(CheckpointError, match=message):
        go_on(state_of(schedule), schedule, options, seed=seed)


def test_other_sources_are_refused_or_begin_anew():
    state = state_of(asked((0, (2, 1, 1))))
    other = WeightSchedule(changes=(Change(at_sample=0, weights={"a": 1.0, "d": 1.0}),))
    with pytest.raises(CheckpointError, match="another list of sources"):
        go_on(state, other)
    assert go_on(state, other, ACCEPTING).names == ["a", "d"]


SHARDS = {"a": ("/old/a/s_0", "/old/a/s_1"), "b": ("/old/b",), "c": ("/old/c",)}


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (("/old/a/s_1", "/old/a/s_0"), r"for a \(its dataset 1 was s_0, now s_1\)"),
        (("/old/a/s_0", "/old/a/s_1", "/old/a/s_2"), r"for a \(2 datasets, now 3\)"),
    ],
)
def test_other_datasets_of_a_source_are_refused(shards, message, caplog):
    schedule = asked((0, (2, 1, 1)))
    state = state_of(schedule, paths=SHARDS)
    with pytest.raises(CheckpointError, match=message):
        go_on(state, schedule, paths=SHARDS | {"a": shards})
    assert go_on(state, schedule, ACCEPTING, paths=SHARDS | {"a": shards}).block_size == 16
    assert "may be read again" in caplog.text


def test_datasets_may_move_and_older_checkpoints_do_not_say_them():
    schedule = asked((0, (2, 1, 1)))
    state = state_of(schedule, paths=SHARDS)
    moved = {n: tuple(p.replace("/old", "/new/x") for p in paths) for n, paths in SHARDS.items()}
    assert history(go_on(state, schedule, paths=moved)) == history(go_on(None, schedule))
    del state["datasets"]
    go_on(state, schedule, paths=SHARDS | {"a": SHARDS["a"][::-1]})


def test_epochs_of_another_size_are_refused(caplog):
    check_sizes({}, {"a": 5}, OPTIONS)
    check_sizes({"a": 5}, {"a": 5}, OPTIONS)
    with pytest.raises(CheckpointError, match=r"source a had 5 samples in an epoch, now 6: its"):
        check_sizes({"a": 5}, {"a": 6}, OPTIONS)
    check_sizes({"a": 5}, {"a": 6}, ACCEPTING)
    assert "may be read again" in caplog.text


def test_a_block_size_that_does_not_count_is_said(caplog):
    schedule = asked((0, (2, 1, 1)))
    options = dataclasses.replace(OPTIONS, block_size=32)
    assert go_on(state_of(schedule), schedule, options).block_size == 16
    assert "--fastmix-block-size 32 does not count" in caplog.text


def test_a_checkpoint_without_a_mixture_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        mixture = go_on(None, asked((0, (2, 1, 1))))
    assert "its 100 samples were not drawn by this blend" in caplog.text
    assert np.allclose(mixture.weights, [0.5, 0.25, 0.25])


def test_draws_of_an_earlier_release_after_a_change_are_refused(caplog):
    schedule = asked((0, (2, 1, 1)), (160, (0, 1, 1)))
    state = state_of(schedule)
    assert go_on(state, schedule, consumed=176)
    del state["draw_order"]
    with pytest.raises(CheckpointError, match="the end of a capped source"):
        go_on(state, schedule)
    state["max_epochs"] = None
    free = dataclasses.replace(OPTIONS, max_epochs=None)
    again = go_on(state, schedule, free, consumed=160)
    assert history(again) == history(go_on(None, schedule))
    with pytest.raises(CheckpointError, match="order of draws after a change of weights"):
        go_on(state, schedule, free, consumed=176)
    assert go_on(state, schedule, dataclasses.replace(free, accept_changes=True), consumed=176)
    assert "earlier samples may be read again" in caplog.text


def test_even_draws_of_an_earlier_release_go_on():
    schedule = asked((0, (2, 1, 1)), (160, (0, 1, 1)))
    weighed = dataclasses.replace(OPTIONS, weighting="loss", max_epochs=None)
    state = state_of(schedule) | {"weighting": "loss", "max_epochs": None}
    del state["draw_order"]
    assert go_on(state, schedule, weighed, consumed=320)


def test_a_state_of_another_release_is_refused():
    state = state_of(asked((0, (2, 1, 1)))) | {"version": 99}
    with pytest.raises(CheckpointError, match="version 99, this program reads 1"):
        go_on(state, asked((0, (2, 1, 1))))


def test_a_blend_of_other_weights_than_the_mixtures_is_said():
    mixture = run_mixture(asked((0, (0.5, 0.3, 0.2))), SHARDS)
    blend = ["/old/b", "/old/a/s_0", "/old/a/s_1", "/old/c"]
    for agreeing in ((0.3, 0.25, 0.25, 0.2), (30, 20, 30.01, 20), (1, 1, 1, 1)):
        assert other_weights(mixture, blend, agreeing) is None
    said = other_weights(mixture, blend, (0.2, 0.4, 0.2, 0.2))
    assert said is not None
    assert "do not count (a 0.6000 there, 0.5000 in the mixture)" in said
    mixture = run_mixture(asked((0, (0.5, 0.3, 0.2)), (160, (0.2, 0.4, 0.4))), SHARDS)
    said = other_weights(mixture, blend, (0.2, 0.4, 0.2, 0.2))
    assert said is not None
    assert said.endswith("(a 0.6000 there, 0.5000 at the start of the schedule)")


def test_corrections_of_many_sources_are_seen():
    names = [f"s{number}" for number in range(300)]
    schedule = WeightSchedule(changes=(Change(at_sample=0, weights=dict.fromkeys(names, 1.0)),))
    mixture, blend = run_mixture(schedule), [f"/data/{name}" for name in names]
    text = other_weights(mixture, blend, [0.75] * 150 + [1.25] * 150)
    assert text is not None
    assert "do not count" in text


def test_what_no_blend_file_writes_is_left_out_before_the_blend_is_known():
    weights = (0.6, 0.39999, 0.00001)
    drawn, left_out = run_mixture(asked((0, weights)), SHARDS).drawn()
    assert drawn.schedule.names == ("a", "b")
    assert list(drawn.paths) == ["a", "b"]
    assert left_out == {"c": SHARDS["c"]}


@pytest.fixture
def session(tmp_path):
    """A run on a mixture of three sources, its arguments parsed, and those arguments."""
    schedule = asked((0, (0.5, 0.3, 0.2)))
    schedule.write(tmp_path / "schedule.yaml")
    begun = Session(
        RunOptions(
            schedule=tmp_path / "schedule.yaml",
            sources={name: (f"/data/{name}",) for name in "abc"},
            accept_changes=True,
        )
    )
    args = SimpleNamespace(seed=1, seq_length=64, global_batch_size=8, micro_batch_size=2)
    begun.arguments_known(args, [(["/data/a", "/data/b", "/data/c"], [1.0, 1.0, 1.0]), None])
    yield begun, args
    blend.uninstall()


def test_a_cap_on_a_source_that_is_left_out_is_no_mistake(tmp_path, corpora):
    asked((0, (0.6, 0.4, 0.0))).write(tmp_path / "schedule.yaml")
    options = RunOptions(
        schedule=tmp_path / "schedule.yaml",
        sources={
            name: (f"{corpora}/{source}",) for name, source in zip("abc", SOURCES, strict=True)
        },
        max_epochs={"a": 2.0, "c": 1.0},
    )
    Session(options).begin_without_arguments()
    try:
        train = build(corpora)[0]
    finally:
        blend.uninstall()
    assert train.names == ["a", "b"]
    assert train.options.max_epochs == {"a": 2.0}


def test_a_change_during_a_step_is_in_that_steps_checkpoint(session):
    begun, args = session
    begun.mixture.update({"a": 0.1, "b": 0.6, "c": 0.3})
    begun.step_ends()
    assert getattr(args, ATTRIBUTE)["history"][-1][1] == [0.1, 0.6, 0.3]


def test_another_mixture_does_not_go_on_under_a_cyclic_loader(session):
    begun, args = session
    before = {"a": 0.2, "b": 0.2, "c": 0.6}
    state = getattr(args, ATTRIBUTE) | {"asked": [[0, before]]}
    state["history"] = [[0, list(before.values())]]
    begun.checkpoint_known(state, 64)
    assert [at for at, _ in begun.mixture.history] == [0, 64]
    args.dataloader_type = "cyclic"
    with pytest.raises(ConfigError, match="from a checkpoint of another one on"):
        begun.checkpoint_known(state, 64)

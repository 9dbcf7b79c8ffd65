"""An unmodified script on a mixture, with `megatron.training`'s own arguments, loader and steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("megatron.training", reason="megatron.training comes with megatron-core 0.19")

import megatron.training.training  # noqa: F401

from megatron_fastmix.lab.forked_ranks import run_ranks
from tests.conftest import SEQ_LENGTH
from tests.megatron_training.runs import (
    BATCH,
    MOVED,
    START,
    Runs,
    check_scalars,
    sources_in_order,
    start,
    tensorboard,
)

SCRIPT = Path(__file__).with_name("pretrain_tiny.py")


@pytest.fixture
def runs(corpora, tmp_path):
    return Runs(corpora, tmp_path, SCRIPT, ())


@pytest.mark.parametrize(
    ("ranks", "tensor", "weighting"),
    [(1, 1, "sampling"), (2, 1, "sampling"), (2, 2, "loss"), (4, 2, "sampling"), (4, 1, "loss")],
)
def test_losses_by_source_are_those_of_the_batches_dataset_ids(runs, ranks, tensor, weighting):
    schedule = runs.schedule("static.yaml", (0, START))
    printed, seen = runs.run(
        ranks,
        "out",
        schedule,
        f"--fastmix-weighting={weighting}",
        f"--tensor-model-parallel-size={tensor}",
        "--calculate-per-token-loss",
        "--train-iters=4",
    )
    check_scalars(tensorboard(runs.folder / "out"), seen)
    lines = re.findall(r"fastmix, by source at iteration +(\d+) \| forward: loss", printed[-1])
    assert lines == ["2", "4"]
    assert not any("fastmix, by source" in text for text in printed[:-1])
    drawn = sources_in_order(seen, ranks // tensor)
    asked = {"sampling": [16, 8, 8], "loss": [11, 11, 11]}[weighting]
    assert all(abs(drawn.count(source) - count) <= 1 for source, count in enumerate(asked))


def test_every_layout_draws_the_same_samples_of_a_schedule(runs):
    schedule = runs.schedule("moving.yaml", (0, START), (2 * BATCH, MOVED))
    flags = ["--train-iters=4"]
    alone = sources_in_order(runs.run(1, "one", schedule, *flags)[1], 1)
    pair = sources_in_order(runs.run(2, "two", schedule, *flags)[1], 2)
    assert alone == pair
    assert [alone[: 2 * BATCH].count(source) for source in range(3)] == [8, 4, 4]
    assert [alone[2 * BATCH :].count(source) for source in range(3)] == [0, 4, 12]


def test_a_resumed_run_draws_on_from_its_checkpoint(runs):
    schedule = runs.schedule("moving.yaml", (0, START), (2 * BATCH, MOVED))
    saved = runs.folder / "saved"
    saved.mkdir()
    _, straight = runs.run(2, "straight", schedule, "--train-iters=4", f"--save={saved}")
    _, resumed = runs.run(2, "resumed", schedule, "--train-iters=4", f"--load={saved / '2.pt'}")
    for whole, part in zip(straight, resumed, strict=True):
        assert part == whole[len(whole) // 2 :]
    # A global batch of another size draws the same samples, in the blocks of before.
    _, larger = runs.run(
        2, "larger", schedule, "--train-iters=3", f"--load={saved / '2.pt'}", batch=2 * BATCH
    )
    assert sources_in_order(larger, 2) == sources_in_order(resumed, 2)


def test_a_batch_size_that_steps_up_draws_the_same_samples(runs):
    schedule = runs.schedule("static.yaml", (0, START))
    block = "--fastmix-block-size=8"
    fixed = runs.run(1, "fixed", schedule, "--train-iters=4", block)[1]
    # In tokens: batches of 4 up to sample 16, then of 8.
    steps = ["--step-batch-size-schedule", f"0:4 {16 * SEQ_LENGTH}:8", "--train-iters=6", block]
    stepped = runs.run(2, "stepped", schedule, *steps, batch=None)[1]
    assert sources_in_order(stepped, 2) == sources_in_order(fixed, 1)
    scalars = tensorboard(runs.folder / "stepped")
    tokens = [scalars[f"fastmix tokens/{name}"] for name in START]
    assert [sum(t[i] for t in tokens) / SEQ_LENGTH for i in (2, 4, 6)] == [8, 16, 32]


def test_another_mixture_on_resume_is_refused_or_holds_from_there_on(runs):
    schedule = runs.schedule("static.yaml", (0, START))
    other = runs.schedule("other.yaml", (0, MOVED))
    saved = runs.folder / "saved"
    saved.mkdir()
    runs.run(1, "first", schedule, "--train-iters=2", f"--save={saved}")
    flags = ["--train-iters=4", f"--load={saved / '2.pt'}"]
    with pytest.raises(AssertionError, match=r"forward has 0\.5 from sample 0 on, now 0"):
        runs.run(1, "refused", other, *flags)
    with pytest.raises(AssertionError, match=r"another --seed \(1234, now 7\)"):
        runs.run(1, "refused", schedule, *flags, "--seed=7")
    _, seen = runs.run(1, "changed", other, *flags, "--fastmix-accept-changes")
    drawn = sources_in_order(seen, 1)
    assert [drawn.count(source) for source in range(3)] == [0, 4, 12]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fastmix-weighting=loss"], "cancels the weights; add --calculate-per-token-loss"),
        (["--dataloader-type=cyclic"], "--dataloader-type cyclic shuffles"),
        (["--dataloader-type=external"], "--dataloader-type external reads data"),
        (["--fastmix-source=nose=/d/nose"], "--fastmix-source nose: no such source"),
        (["--fastmix-wieghting=loss"], "--fastmix-wieghting=loss: no such flag"),
    ],
)
def test_arguments_that_would_cancel_the_mixture_are_refused(runs, flags, message):
    schedule = runs.schedule("static.yaml", (0, START))
    with pytest.raises(AssertionError, match=re.escape(message)):
        runs.run(1, "refused", schedule, "--train-iters=2", *flags)


def test_a_blend_that_differs_from_the_mixture_is_named(runs):
    schedule = runs.schedule("static.yaml", (0, START))
    command = runs.command(schedule, runs.folder / "out", "--train-iters=2")
    place = command.index("--data-path")
    one = [*command[: place + 6], "/d/else", *command[place + 7 :]]
    with pytest.raises(AssertionError, match=r"no source of the mixture: /d/else; sources without"):
        run_ranks(1, start, one)
    blend = [part for part in command[place : place + 7] if part != "1"]
    unweighted = [*command[:place], *blend, *command[place + 7 :]]
    with pytest.raises(AssertionError, match="without weights: Megatron then reads each sample"):
        run_ranks(1, start, unweighted)


def start_as_rank(commands: list[list[str]]) -> str:
    return start(commands[int(os.environ["RANK"])])


def test_ranks_that_read_different_mixtures_are_stopped(runs):
    # As where each host has a copy of its own, or a search writes the file meanwhile.
    files = [runs.schedule("one.yaml", (0, START)), runs.schedule("two.yaml", (0, MOVED))]
    commands = [runs.command(file, runs.folder / "out", "--train-iters=2") for file in files]
    with pytest.raises(AssertionError, match="checksums of the mixture differ over 2 ranks"):
        run_ranks(2, start_as_rank, commands)


@pytest.mark.slow
def test_torchrun_starts_the_script_as_a_user_would(runs):
    schedule = runs.schedule("static.yaml", (0, START))
    command = runs.command(schedule, runs.folder / "out", "--train-iters=2")
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--local-addr", "127.0.0.1", "--nproc-per-node", "2"),
            *("-m", "megatron_fastmix.megatron", *command),
        ],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "fastmix, by source at iteration        2" in ended.stdout

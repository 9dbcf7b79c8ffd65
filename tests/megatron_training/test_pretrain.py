"""`megatron.training.pretrain` itself on a mixture: its schedules, evaluation and checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("megatron.training", reason="megatron.training comes with megatron-core 0.19")

import megatron.training.training  # noqa: F401

from tests.megatron_training.runs import (
    BATCH,
    MOVED,
    START,
    Runs,
    check_scalars,
    sources_in_order,
    tensorboard,
)

SCRIPT = Path(__file__).with_name("pretrain_loop.py")
FIXED = (
    *("--use-cpu-initialization", "--no-bias-dropout-fusion", "--no-rope-fusion"),
    *("--attention-dropout=0", "--hidden-dropout=0", "--optimizer=sgd", "--clip-grad=0"),
    *("--eval-iters=1", "--eval-interval=2"),
)


@pytest.fixture
def runs(corpora, tmp_path):
    return Runs(corpora, tmp_path, SCRIPT, FIXED)


@pytest.mark.parametrize(
    ("ranks", "flags", "data", "slices"),
    [
        (2, "--pipeline-model-parallel-size=2 --num-layers=2", 1, 1),
        (
            2,
            "--pipeline-model-parallel-size=2 --num-layers=4 "
            "--num-layers-per-virtual-pipeline-stage=1 --fastmix-weighting=loss "
            "--calculate-per-token-loss",
            1,
            1,
        ),
        (
            4,
            "--pipeline-model-parallel-size=2 --num-layers=2 --tensor-model-parallel-size=2",
            1,
            1,
        ),
        (4, "--pipeline-model-parallel-size=2 --num-layers=2", 2, 1),
        (2, "--context-parallel-size=2 --tokenwise", 1, 2),
        (
            4,
            "--context-parallel-size=2 --tokenwise --fastmix-weighting=loss "
            "--calculate-per-token-loss",
            2,
            2,
        ),
    ],
    ids=["pipeline", "virtual", "pipeline-tensor", "pipeline-data", "context", "context-data"],
)
def test_losses_by_source_of_a_parallel_run_are_those_of_its_batches(
    runs, ranks, flags, data, slices
):
    schedule = runs.schedule("static.yaml", (0, START))
    printed, seen = runs.run(ranks, "out", schedule, *flags.split(), "--train-iters=4")
    # The evaluation between them adds nothing.
    check_scalars(tensorboard(runs.folder / "out"), seen, slices)
    lines = re.findall(r"fastmix, by source at iteration +(\d+) \| forward: loss", printed[-1])
    assert lines == ["2", "4"]
    assert not any("fastmix, by source" in text for text in printed[:-1])
    drawn = sources_in_order(seen, data, slices)
    asked = [11, 11, 11] if "weighting=loss" in flags else [16, 8, 8]
    assert all(abs(drawn.count(source) - count) <= 1 for source, count in enumerate(asked))


def test_every_validation_set_has_its_loss_under_its_name(runs):
    schedule = runs.schedule("static.yaml", (0, START))
    names = ("target", "target_backward")
    paths = [str(runs.corpora / name) for name in names]
    # Of one set alone --full-validation fails in Megatron 0.19 without the third flag.
    flags = ["--train-iters=2", "--full-validation", "--multiple-validation-sets"]
    runs.run(2, "several", schedule, "--valid-data-path", *paths, *flags)
    scalars = tensorboard(runs.folder / "several")
    for name, path in zip(names, paths, strict=True):
        # The same training with this set alone.
        runs.run(2, name, schedule, "--valid-data-path", path, *flags)
        alone = tensorboard(runs.folder / name)[f"lm loss validation-{name}"][2]
        assert scalars[f"lm loss validation-{name}"][2] == pytest.approx(alone, rel=1e-6)
    losses = [scalars[f"lm loss validation-{name}"][2] for name in names]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("form", ["torch", "torch_dist"])
def test_loading_any_iteration_of_megatrons_checkpoints_finds_its_mixture(runs, form):
    moving = runs.schedule("moving.yaml", (0, START), (2 * BATCH, MOVED))
    saved = runs.folder / "saved"
    # Of the same rate whatever the length of the run and the size of its batches; torch_dist loads
    # no state of SGD.
    flags = [f"--ckpt-format={form}", "--lr-decay-style=constant", "--override-opt_param-scheduler"]
    flags.append("--optimizer=adam")
    load = [*flags, f"--load={saved}"]
    _, straight = runs.run(2, "straight", moving, *flags, "--train-iters=6", f"--save={saved}")
    _, resumed = runs.run(2, "resumed", moving, *load, "--ckpt-step=2", "--train-iters=4")
    third = len(straight[0]) // 3
    for whole, part in zip(straight, resumed, strict=True):
        assert part == [pytest.approx(row, rel=1e-5) for row in whole[third : 2 * third]]
    # Batches of twice the size read the same samples on.
    _, larger = runs.run(
        2, "larger", moving, *load, "--ckpt-step=4", "--train-iters=5", batch=2 * BATCH
    )
    last = [rank[2 * third :] for rank in straight]
    assert sources_in_order(larger, 2) == sources_in_order(last, 2)
    other = runs.schedule("other.yaml", (0, MOVED))
    with pytest.raises(AssertionError, match=r"forward has 0\.5 from sample 0 on, now 0"):
        runs.run(2, "other", other, *load, "--ckpt-step=2", "--train-iters=4")

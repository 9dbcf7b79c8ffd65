"""Runs of a script on a mixture, and what its batches say of every source."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_fastmix.blend.weight_schedule import Change, WeightSchedule
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.megatron.__main__ import main
from tests.conftest import SEQ_LENGTH, SOURCES

START = {"forward": 0.5, "backward": 0.25, "noise": 0.25}
MOVED = {"forward": 0.0, "backward": 0.25, "noise": 0.75}
BATCH = 8
MICRO_BATCH = 2
FIXED = f"""
--num-layers 1 --hidden-size 32 --num-attention-heads 2 --seq-length {SEQ_LENGTH}
--max-position-embeddings {SEQ_LENGTH} --micro-batch-size {MICRO_BATCH} --lr 1e-2
--tokenizer-type NullTokenizer --vocab-size 300 --transformer-impl local
--no-gradient-accumulation-fusion --no-persist-layer-norm --no-bias-swiglu-fusion
--no-masked-softmax-fusion --distributed-backend gloo --eval-iters 0
--log-interval 2 --num-workers 1 --save-interval 2 --ckpt-format torch
""".split()

Seen = list[list[tuple[int, float, int]]]
"""By rank the (source, loss, tokens) of every row that it trained on, in their order."""


class Runs:
    """Runs of one script and data set; `flags` come after the fixed ones."""

    def __init__(self, corpora: Path, folder: Path, script: Path, fixed: tuple[str, ...]) -> None:
        self.corpora, self.folder = corpora, folder
        self.script, self.fixed = script, fixed

    def schedule(self, name: str, *changes: tuple[int, dict[str, float]]) -> Path:
        path = self.folder / name
        entries = tuple(Change(at_sample=at, weights=weights) for at, weights in changes)
        WeightSchedule(changes=entries).write(path)
        return path

    def command(
        self, schedule: Path, output: Path, *flags: str, batch: int | None = BATCH
    ) -> list[str]:
        output.mkdir(exist_ok=True)
        # Not in the mixture's order, and with weights that the mixture's replace.
        blend = [part for name in reversed(SOURCES) for part in ("1", str(self.corpora / name))]
        by_split = any(flag.startswith("--valid-data-path") for flag in flags)
        return [
            str(self.script),
            *FIXED,
            *self.fixed,
            *([f"--global-batch-size={batch}"] if batch else []),
            f"--tiny-output={output}",
            f"--data-cache-path={self.folder / 'cache'}",
            f"--tensorboard-dir={output / 'tensorboard'}",
            *(["--train-data-path"] if by_split else ["--split", "90,10,0", "--data-path"]),
            *blend,
            *flags,
            f"--fastmix-schedule={schedule}",
            *(f"--fastmix-source={name}={self.corpora / name}" for name in SOURCES),
        ]

    def run(
        self, ranks: int, name: str, schedule: Path, *flags: str, batch: int | None = BATCH
    ) -> tuple[list[str], Seen]:
        """What each rank printed, and what it saw."""
        output = self.folder / name
        printed = run_ranks(ranks, start, self.command(schedule, output, *flags, batch=batch))
        seen = [json.loads((output / f"{rank}.json").read_text()) for rank in range(ranks)]
        return printed, seen


def start(arguments: list[str]) -> str:
    """The launcher on one rank; what it printed."""
    sys.argv = ["megatron_fastmix.megatron", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main()
    return printed.getvalue()


def tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    """Values by tag and iteration."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def sources_in_order(seen: Seen, data_size: int, slices: int = 1) -> list[int]:
    """The source of every sample of a run in the order of its numbers; `slices` ranks see a part
    of each sequence."""
    rows = [rank for rank in seen if rank]
    assert len(rows) == data_size * slices
    return [
        rows[rank * slices][at + row][0]
        for at in range(0, len(rows[0]), MICRO_BATCH)
        for rank in range(data_size)
        for row in range(MICRO_BATCH)
    ]


def check_scalars(scalars: dict[str, dict[int, float]], seen: Seen, slices: int = 1) -> None:
    """What the run's TensorBoard says of every source at iterations 2 and 4, of 4, is what its
    batches' `dataset_id` say."""
    for half, iteration in enumerate((2, 4)):
        sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for rank in seen:
            for at, (source, loss, tokens) in enumerate(rank):
                if at < len(rank) * (half + 1) // 2:
                    sums[source][2] += 1 / slices
                    if at >= len(rank) * half // 2:
                        sums[source][0] += loss
                        sums[source][1] += tokens
        for source, name in enumerate(START):
            loss, tokens, draws = sums[source]
            shown = scalars[f"fastmix loss/{name}"][iteration]
            assert shown == pytest.approx(loss / tokens, rel=1e-5)
            assert scalars[f"fastmix tokens/{name}"][iteration] == round(draws) * SEQ_LENGTH
            assert scalars[f"fastmix weight/{name}"][iteration] == pytest.approx(START[name])
            assert scalars[f"fastmix epochs/{name}"][iteration] > 0

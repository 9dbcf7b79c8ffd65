"""A schedule of weights as the phases of Megatron-LM's `--phase-transition-iterations`.

Source: `megatron/training/training.py` of megatron-core 0.19. A run ends with a checkpoint at each
of these iterations; started again, it builds its data for the phase that it is in, from the
`--data-path` of that start. Iterations are those of one global batch size, and the arithmetic
needs `--train-samples`: with `--train-iters` alone it compares with None.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from itertools import pairwise

from megatron_fastmix.blend.weight_schedule import WeightSchedule
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.result.rounding import written_weights

NOTE = (
    "Megatron begins each phase at the start of its sources, in an order that --seed decides, so a "
    "later phase reads samples of an earlier one again, unless --seed changes with the phase"
)


def check_length(train_samples: int, global_batch_size: int) -> None:
    """Raises `ConfigError` for a run of no sample or a batch of none."""
    given = {"--train-samples": train_samples, "--global-batch-size": global_batch_size}
    for flag, number in given.items():
        if number < 1:
            raise ConfigError(f"{flag}: found {number}; use 1 or more")


def phases(
    schedule: WeightSchedule,
    paths: Mapping[str, str],
    *,
    global_batch_size: int,
    train_samples: int,
    decimals: int,
) -> str:
    """One line of flags, quoted for a POSIX shell, for each start of the run, under a comment.

    Args:
        paths: prefix of the indexed dataset of each source of `schedule`.
        train_samples: samples of the whole run.
        decimals: places of the weights.

    Sources of weight 0 are left out of their phase. Raises `ConfigError` where a change is not at
    the end of a global batch or not within the run.
    """
    check_length(train_samples, global_batch_size)
    starts = [change.at_sample for change in schedule.changes]
    for start in starts:
        if start % global_batch_size:
            nearest = round(start / global_batch_size) * global_batch_size
            raise ConfigError(
                f"at_sample: found {start}, inside a global batch of {global_batch_size}; Megatron "
                f"changes phase between iterations, so use {nearest}"
            )
    if train_samples <= starts[-1]:
        raise ConfigError(
            f"train_samples: found {train_samples}; the last change is at sample {starts[-1]}, "
            "which the run must pass"
        )
    transitions = ",".join(str(start // global_batch_size) for start in starts[1:])
    common = f"--train-samples {train_samples} --global-batch-size {global_batch_size}"
    if transitions:
        common = f"--phase-transition-iterations {transitions} {common}"
    text = ""
    ends = pairwise([*starts, train_samples])
    for number, (change, (first, end)) in enumerate(
        zip(schedule.changes, ends, strict=True), start=1
    ):
        weights = {name: change.weights[name] for name in schedule.names}
        written = written_weights(weights, decimals)
        blend = [part for name, weight in written.items() for part in (weight, paths[name])]
        text += f"# phase {number} of {len(starts)}: samples {first} to {end}\n"
        text += f"{common} --data-path {shlex.join(blend)}\n"
    return text

"""Two phases from the trajectory of a search, or from two searches: main and anneal."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.blend.weight_schedule import Change, WeightSchedule
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.blend import BlendEntry, dataset_names
from megatron_fastmix.export.megatron_phases import NOTE, check_length, phases
from megatron_fastmix.export.nemotron import entries
from megatron_fastmix.result.learned_mixture import LearnedMixture, LearnedSource
from megatron_fastmix.result.rounding import default_decimals, places_for, written_weights
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.storage import reason_of
from megatron_fastmix.text_list import listed

FLAGS, SCHEDULE = "megatron_phases.txt", "schedule.yaml"
BLENDS = ("data_blend_phase1.json", "data_blend_phase2.json")
"""What `write_phases` writes."""

EVIDENCE = (
    "what is known of such phases: a search's weights move because its proxy learns and because "
    "its optimizer needs time to arrive, and a trajectory does not tell the two apart. In the two "
    "comparisons there are (tools/method_rows/README.md) target models in two phases ended 0.026 "
    "+- 0.020 and 0.020 +- 0.052 nats behind those on the averaged tail: keep the one mixture, or "
    "learn the anneal by a search of its own, from a model that was trained on the first phase "
    "(--anneal RUN)"
)


def trajectory(metrics: str | Path, mixture: LearnedMixture) -> list[tuple[int, dict[str, float]]]:
    """(optimizer step, weights by source) from the start on, whose weights are the initial ones:
    those of an outer step hold until the next. Raises `DataError` for metrics that are not this
    mixture's."""
    moves = [line for line in read_metrics(metrics) if line["kind"] == "outer"]
    names = [source.name for source in mixture.sources]
    for line in moves:
        if set(line.get("weights") or ()) != set(names):
            raise DataError(
                f"{metrics}: step {line['step']} has weights of {sorted(line.get('weights') or ())}"
                f", the mixture of {sorted(names)}; give the run folder that has both"
            )
    return [(0, mixture.initial), *((line["step"], line["weights"]) for line in moves)]


def trajectory_means(
    metrics: str | Path, mixture: LearnedMixture, fraction: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean weights of a search over the first `fraction` of its optimizer steps, and over the rest.

    Raises `ConfigError` for a fraction that leaves a phase no outer step, and what `trajectory`
    raises.
    """
    _check_fraction(fraction)
    starts = trajectory(metrics, mixture)
    moves = starts[1:]
    border = fraction * mixture.steps
    inside = [sum(step <= border for step, _ in moves), 0]
    inside[1] = len(moves) - inside[0]
    if not all(inside):
        raise ConfigError(
            f"--phases {fraction:g}: of {len(moves)} outer steps {inside[0]} fall before step "
            f"{border:g} and {inside[1]} after it; choose a fraction that leaves both some"
        )
    ends = [step for step, _ in moves] + [mixture.steps]
    names = list(mixture.weights)
    means = []
    for first, last in ((0.0, border), (border, float(mixture.steps))):
        held = [
            (max(0.0, min(end, last) - max(at, first)), weights)
            for (at, weights), end in zip(starts, ends, strict=True)
        ]
        total = math.fsum(time for time, _ in held)
        means.append(
            {n: math.fsum(time * weights[n] for time, weights in held) / total for n in names}
        )
    return means[0], means[1]


def phase_schedule(
    main: Mapping[str, float],
    anneal: Mapping[str, float],
    *,
    fraction: float,
    train_samples: int,
    global_batch_size: int,
) -> WeightSchedule:
    """`main` for the first `fraction` of `train_samples`, to the nearest whole global batch, then
    `anneal`; weights by name, 0 where a phase lacks a source. Raises `ConfigError`."""
    _check_fraction(fraction)
    check_length(train_samples, global_batch_size)
    change = round(fraction * train_samples / global_batch_size) * global_batch_size
    if not 0 < change < train_samples:
        raise ConfigError(
            f"--phases {fraction:g} of {train_samples} samples is no whole batch of "
            f"{global_batch_size} inside the run; give more --train-samples or another fraction"
        )
    names = list(dict.fromkeys([*main, *anneal]))
    return WeightSchedule(
        changes=tuple(
            Change(at_sample=at, weights={name: weights.get(name, 0.0) for name in names})
            for at, weights in ((0, main), (change, anneal))
        )
    )


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ConfigError(f"--phases: found {fraction:g}; use a fraction between 0 and 1, as 0.8")


def by_dataset(
    schedule: WeightSchedule, sources: Mapping[str, LearnedSource]
) -> tuple[WeightSchedule, dict[str, str]]:
    """The schedule of the sources' datasets, each with its part of its source's tokens, and their
    prefixes; `dataset_names` names them."""
    names = dataset_names({name: len(sources[name].shards) for name in schedule.names})
    parts: dict[str, tuple[str, str, float]] = {}
    for name in schedule.names:
        shards = sources[name].shards
        for number, shard in enumerate(shards, start=1):
            part = shard.tokens / sources[name].size.tokens
            parts[names[name, number]] = (name, shard.path, part)
    changes = tuple(
        Change(
            at_sample=change.at_sample,
            weights={entry: change.weights[n] * part for entry, (n, _, part) in parts.items()},
        )
        for change in schedule.changes
    )
    return WeightSchedule(changes=changes), {e: path for e, (_, path, _) in parts.items()}


def decimals_for(
    datasets: WeightSchedule, sources: Mapping[str, LearnedSource], decimals: int | None
) -> int:
    """`decimals` (None: `default_decimals`), or more where a dataset of a source of several would
    round to 0."""
    of_several = [
        weight / math.fsum(change.weights.values())
        for change in datasets.changes
        for entry, weight in change.weights.items()
        if entry not in sources
    ]
    if decimals is None:
        decimals = default_decimals(len(sources))
    return places_for(of_several, decimals)


def left_out(datasets: WeightSchedule, decimals: int) -> list[str]:
    """A note for each phase that leaves out what rounds to 0 at `decimals`."""
    found = []
    for number, change in enumerate(datasets.changes, start=1):
        rounded = written_weights(change.weights, decimals)
        gone = [n for n, weight in change.weights.items() if weight > 0 and n not in rounded]
        if gone:
            found.append(
                f"phase {number} leaves out what rounds to 0 at {decimals} decimals: {listed(gone)}"
            )
    return found


def write_phases(
    folder: str | Path,
    schedule: WeightSchedule,
    sources: Mapping[str, LearnedSource],
    *,
    train_samples: int,
    global_batch_size: int,
    decimals: int | None,
) -> tuple[list[Path], list[str]]:
    """Writes the phases in three forms into `folder`. Returns the files, and the notes of
    `left_out` at `decimals` (see `decimals_for`).

    `FLAGS` holds a line of flags for each start of Megatron-LM, `BLENDS` are Nemotron's
    `DataBlend`s, and `SCHEDULE` is what `--fastmix-schedule` reads. Raises `ConfigError` and
    `DataError`.
    """
    datasets, paths = by_dataset(schedule, sources)
    places = decimals_for(datasets, sources, decimals)
    text = phases(
        datasets,
        paths,
        global_batch_size=global_batch_size,
        train_samples=train_samples,
        decimals=places,
    )
    folder = Path(folder)
    written = {folder / FLAGS: f"# {NOTE}\n{text}"}
    for name, change in zip(BLENDS, datasets.changes, strict=True):
        rounded = written_weights(change.weights, places)
        chosen = [
            BlendEntry(name=entry, path=paths[entry], weight=weight, count=Fraction(0))
            for entry, weight in rounded.items()
        ]
        blend = json.dumps({"datasets": entries(chosen)}, indent=2, ensure_ascii=False)
        written[folder / name] = blend + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in written.items():
            write_atomically(path, content)
        schedule.write(folder / SCHEDULE)
    except OSError as error:
        raise ConfigError(
            f"--output: cannot write into {folder}: {reason_of(error)}; choose another folder"
        ) from None
    return [*written, folder / SCHEDULE], left_out(datasets, places)


def phase_notes(schedule: WeightSchedule, mixture: LearnedMixture, folder: str | Path) -> list[str]:
    """What is to be known beside the files: how far the phases differ, against the spread of the
    weights in the search's tail, and what the evidence says."""
    one, two = (dict(change.weights) for change in schedule.changes)
    sums = math.fsum(one.values()), math.fsum(two.values())
    distance = math.fsum(abs(one[n] / sums[0] - two[n] / sums[1]) for n in schedule.names) / 2
    spread = math.fsum(source.weight_std for source in mixture.sources) / 2
    said = [
        f"the phases differ by {distance:.4f} (half the sum of absolute differences); the weights' "
        f"standard deviations in the search's tail come to {spread:.4f} in the same measure"
    ]
    if distance <= spread:
        said.append("warning: the phases are not told apart by this search; use its one mixture")
    file = shlex.quote(str(Path(folder) / SCHEDULE))
    said.append(
        f"note: in one run: python -m megatron_fastmix.megatron ... --fastmix-schedule {file}"
    )
    said.append(f"note: {EVIDENCE}")
    return said


def check_text(mixture: LearnedMixture, where: str | Path) -> None:
    """Raises `ConfigError` for shares of answer tokens, which no phase of Megatron's takes."""
    if mixture.answer_only:
        raise ConfigError(
            f"{where}: phases are for mixtures of text; these weights are {mixture.weights_are}"
        )

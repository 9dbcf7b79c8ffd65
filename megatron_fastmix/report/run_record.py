"""What one search logged and learned: curves from its `metrics.jsonl`, ready to be drawn, and the
result from the `mixture.json` beside it.

Keys that a line lacks are left out of the record, and keys that are not known are kept as further
figures, so that the report reads the metrics of older and newer releases.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

import numpy as np

from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.metric_line import check_line
from megatron_fastmix.run.metrics import read_metrics

KNOWN_OUTER_FIGURES = {"step", "time", "outer_step", "lr", "seconds", "noise_to_signal"}
PAUSE_FACTOR = 10
"""A line that comes after a checkpoint and took this many times the usual step is a resumption."""

Points = list[tuple[int, float]]
"""(optimizer step, value)"""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunRecord:
    """One search; equal to itself alone, so that what is computed from it can be kept."""

    name: str
    path: Path
    """The metrics.jsonl."""
    sources: list[str]
    targets: list[str]
    config: dict[str, Any]
    """The resolved configuration; empty where it was not logged."""
    seed: int | None
    began: float | None
    """When its first line was written, in seconds since the epoch."""
    parameters: int | None
    """Of the proxy; None where they were not logged."""
    warnings: list[str]
    """What the search knew at its start to make the result less sure."""
    initial: dict[str, float]
    """Weights before the first outer step."""
    mixture: LearnedMixture | None
    """The result; None before the first checkpoint."""
    training_flops: float | None
    """FLOPs of the whole search; None where they were not logged."""
    train_iters: int | None
    averaging_fraction: float
    inner: list[dict[str, Any]]
    outer: list[dict[str, Any]]
    seconds: dict[str, float]
    """Wall time by part of the search: `inner`, `outer`, `data`, `checkpoint`."""
    complete: bool
    ended: bool
    """Whether the search has stopped, finished or not."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return max((line["step"] for line in (*self.inner[-1:], *self.outer[-1:])), default=0)

    @property
    def trained_tokens(self) -> int | None:
        """Tokens that the proxy has been trained on."""
        return self.inner[-1].get("tokens") if self.inner else None

    @property
    def tail(self) -> list[dict[str, float]]:
        """The weights that the learned mixture averages, or would if the run ended here."""
        count = max(1, round(self.averaging_fraction * len(self.outer)))
        return [line["weights"] for line in self.outer[-count:]] or [self.initial]

    def by_name(self, kind: str, key: str, name: str) -> Points:
        """The values of `key`[`name`] in the `inner` or `outer` lines; missing ones left out."""
        lines = self.inner if kind == "inner" else self.outer
        found = []
        for line in lines:
            values = line.get(key)
            value = values.get(name) if isinstance(values, dict) else None
            if is_number(value):
                found.append((line["step"], float(value)))
        return found

    def by_source(self, key: str) -> np.ndarray:
        """The values of `key` in the outer steps, (T, K); NaN where one was not logged."""
        found = []
        for line in self.outer:
            values = line.get(key)
            each = values if isinstance(values, dict) else {}
            found.append([v if is_number(v := each.get(n)) else np.nan for n in self.sources])
        return np.array(found, dtype=float).reshape(-1, len(self.sources))

    def weights_before(self) -> np.ndarray:
        """α before each outer step, (T, K)."""
        steps = [self.initial, *(line["weights"] for line in self.outer)][: len(self.outer)]
        found = [[weights[name] for name in self.sources] for weights in steps]
        return np.array(found, dtype=float).reshape(-1, len(self.sources))

    def bounds(self) -> tuple[list[float], list[float]]:
        """Lower and upper bounds of the weights, with those of a group that is one source."""
        configured = {
            source["name"]: source
            for source in self.config.get("sources", [])
            if isinstance(source, dict) and "name" in source
        }
        each = [configured.get(name, {}) for name in self.sources]
        labels = [s.get("group") or name for s, name in zip(each, self.sources, strict=True)]
        sizes = Counter(labels)
        groups = {group.get("name"): group for group in self.config.get("groups", [])}
        alone = [groups.get(label, {}) if sizes[label] == 1 else {} for label in labels]
        pairs = list(zip(each, alone, strict=True))
        return (
            [max(s.get("min_weight", 0.0), g.get("min_weight", 0.0)) for s, g in pairs],
            [min(s.get("max_weight", 1.0), g.get("max_weight", 1.0)) for s, g in pairs],
        )

    def figure(self, kind: str, key: str) -> Points:
        """The values of a single number, such as `noise_to_signal`."""
        lines = self.inner if kind == "inner" else self.outer
        values = [(line["step"], line.get(key)) for line in lines]
        return [(step, float(value)) for step, value in values if is_number(value)]

    def further_figures(self) -> list[str]:
        """Names of single numbers in the `outer` lines that the report does not know."""
        names = {key for line in self.outer for key, value in line.items() if is_number(value)}
        return sorted(names - KNOWN_OUTER_FIGURES)


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """The metrics.jsonl files of run folders, of folders of seeds, or given themselves.

    Raises `DataError` for a path with none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            found.append(path)
        elif RunFolder(path).metrics.exists():
            found.append(RunFolder(path).metrics)
        else:
            seeds = [run.metrics for run in _seeds(RunFolder(path)) if run.metrics.exists()]
            if not seeds:
                raise DataError(
                    f"{path}: no metrics.jsonl in it, nor in folders seed-*; give a run folder"
                )
            found += seeds
    return list(dict.fromkeys(found))


def are_begun(paths: Sequence[str | Path]) -> bool:
    """Whether every search in folders of seeds has begun."""
    seeds = [seed for path in map(Path, paths) for seed in _seeds(RunFolder(path))]
    return all(seed.metrics.exists() for seed in seeds)


def _seeds(folder: RunFolder) -> list[RunFolder]:
    """The searches that the folder's result averages; all of them where it has none yet."""
    if folder.mixture.exists():
        return [folder.seed(seed) for seed in read_mixture(folder.path).seeds]
    return folder.seeds()


def read_run(path: str | Path, name: str | None = None) -> RunRecord:
    """Reads one metrics.jsonl. Raises `DataError` for one that is unreadable or tells no run."""
    path = Path(path)
    lines = read_metrics(path)
    start = next((line for line in lines if line["kind"] == "run"), None)
    outer = [line for line in lines if line["kind"] == "outer" and _weights(line)]
    if start is None and not outer:
        raise DataError(f"{path}: no line of kind `run`, so there is no run to report on")
    start = start or {}
    first = outer[0]["weights"] if outer else {}
    initial = start.get("initial_weights") or start.get("weights") or {}
    sources = list(initial or first)
    initial = initial or dict.fromkeys(sources, 1 / len(sources))
    for line in outer:
        if line["weights"].keys() != initial.keys():
            raise DataError(
                f"{path}: step {line['step']} has weights of {list(line['weights'])}, the run of "
                f"{sources}; are these the metrics of one run?"
            )
    ends = [line for line in lines if line["kind"] == "end"]
    # A stopped run that was resumed has lines after its end.
    ended = bool(lines) and lines[-1]["kind"] == "end"
    result = _result(path, sources)
    # A search that went on with other values has them in its result alone.
    config = (start.get("config") or {}) | (result.config if result is not None else {})
    mixture = config.get("mixture", {})
    return RunRecord(
        name=name or path.parent.name or str(path),
        path=path,
        sources=sources,
        targets=_targets(start, outer),
        config=config,
        seed=config.get("seed", start.get("seed")),
        began=start.get("time"),
        parameters=start.get("parameters"),
        warnings=start.get("warnings", []),
        initial=initial,
        mixture=result,
        training_flops=next(
            (line["training_flops"] for line in ends[-1:] if is_number(line.get("training_flops"))),
            None,
        ),
        train_iters=config.get("training", start).get("train_iters"),
        averaging_fraction=mixture.get("averaging_fraction", start.get("averaging_fraction", 0.5)),
        inner=[line for line in lines if line["kind"] == "inner"],
        outer=outer,
        seconds=_time_split(lines),
        complete=ended and bool(lines[-1].get("complete")),
        ended=ended,
    )


def _result(metrics: Path, sources: list[str]) -> LearnedMixture | None:
    """The mixture beside the metrics. Raises `DataError` where it is another run's or damaged."""
    file = RunFolder(metrics.parent).mixture
    if not file.exists():
        return None
    mixture = read_mixture(file)
    if set(mixture.weights) != set(sources):
        raise DataError(
            f"{file}: is about {', '.join(mixture.weights)}, {metrics} about {', '.join(sources)}; "
            "are these the files of one run?"
        )
    try:
        check_line({"kind": "run", "config": dict(mixture.config)})
    except ConfigError as error:
        raise DataError(f"{file}: {error}; restore the file") from None
    return mixture


def run_folder(runs: Sequence[RunRecord]) -> Path | None:
    """The folder whose mixture.json is the result of all `runs`; None where they share none."""
    folder = runs[0].path.parent
    if len(runs) == 1:
        return folder
    averaged = {each.path for each in _seeds(RunFolder(folder.parent))}
    return folder.parent if {run.path.parent for run in runs} == averaged else None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < math.inf


def _weights(line: dict[str, Any]) -> bool:
    weights = line.get("weights")
    return isinstance(weights, dict) and bool(weights) and all(map(is_number, weights.values()))


def _targets(start: dict[str, Any], outer: Sequence[dict[str, Any]]) -> list[str]:
    named = start.get("targets")
    if isinstance(named, list):
        return [str(name) for name in named]
    losses = outer[0].get("target_loss") if outer else None
    return list(losses) if isinstance(losses, dict) else []


def _time_split(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds by part: a line is written when its part is done, so it took since the last line.
    An outer step whose probe is the training took longer, by what the inner step waited for it.

    Time between a checkpoint and the next line that is far beyond the usual is that of a run that
    stood still, and is left out.
    """
    spans: dict[str, list[float]] = {"inner": [], "outer": [], "checkpoint": []}
    after_stop: list[tuple[str, float]] = []
    data = begun = 0.0
    for before, line in itertools.pairwise(lines):
        if line["kind"] not in spans or not all(
            is_number(each.get("time")) for each in (before, line)
        ):
            continue
        span = max(0.0, line["time"] - before["time"])
        if before["kind"] in ("checkpoint", "end"):
            after_stop.append((line["kind"], span))
        else:
            spans[line["kind"]].append(span)
        if line["kind"] == "outer" and is_number(line.get("seconds")):
            begun += max(0.0, line["seconds"] - span)
        waited = line.get("data_seconds")
        if line["kind"] == "inner" and is_number(waited):
            data += waited
    for kind, span in after_stop:
        usual = median(spans[kind]) if spans[kind] else span
        if span <= PAUSE_FACTOR * usual:
            spans[kind].append(span)
    totals = {kind: sum(found) for kind, found in spans.items() if found}
    if "outer" in totals and "inner" in totals:
        begun = min(begun, totals["inner"])
        totals["outer"] += begun
        totals["inner"] -= begun
    if data:
        totals["inner"] = max(0.0, totals["inner"] - data)
        totals["data"] = data
    return totals

"""Where the events of a search go: metrics, terminal, trackers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.run.events import (
    CheckpointBegun,
    Event,
    InnerStep,
    Note,
    Opening,
    OuterStep,
    RunEnd,
    Sink,
)
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.metrics import MetricsLog
from megatron_fastmix.run.progress import Progress
from megatron_fastmix.run.trackers import Tracker, inner_scalars, open_trackers, outer_scalars

PICTURES = 10
"""Times in a search that trackers get a picture, at checkpoints, beside the one at its end."""

Draw = Callable[[Path], np.ndarray | None]
"""From the metrics of a search to the pixels of a picture, (height, width, 3); None where there is
nothing to draw yet."""


def open_sinks(
    config: SearchConfig, folder: RunFolder, step: int, *, draw: Draw | None = None
) -> list[Sink]:
    """The sinks of a search that has done `step` steps; lines of later steps, left by a run that
    died, are dropped. Trackers get the picture that `draw` makes."""
    metrics = MetricsSink(folder, step)
    terminal = TerminalSink(config, step)
    values = strict_yaml.to_dict(config)
    batch_size = config.training.global_batch_size
    trackers = open_trackers(config.output, folder.path, step, batch_size, values)
    return [metrics, terminal, *(TrackerSink(each, config, folder, draw) for each in trackers)]


_LEFT_OUT = {
    "data_seconds",
    "group_loss",
    "group_weights",
    "group_advantage",
    "group_advantage_standard_error",
}
"""Keys that a line does not have where they are not known."""


class MetricsSink:
    """`metrics.jsonl`: every event that has a kind."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        self._log = MetricsLog(folder.metrics)
        self._log.truncate_after(step if step else -1)

    def receive(self, event: Event) -> None:
        if event.kind:
            fields = {f.name: getattr(event, f.name) for f in dataclasses.fields(event)}
            for key in _LEFT_OUT & fields.keys():
                if fields[key] is None:
                    del fields[key]
            self._log.write(event.kind, fields.pop("step"), **fields)

    def close(self) -> None:
        self._log.close()


class TerminalSink:
    """A bar on a terminal, plain lines elsewhere."""

    def __init__(self, config: SearchConfig, step: int) -> None:
        self._progress = Progress(
            config.training.train_iters,
            initial=step,
            log_interval=config.output.log_interval,
            global_batch_size=config.training.global_batch_size,
        )
        self._target_weights = config.target_weights
        self._weights: Mapping[str, float] = {}
        self._target_loss: float | None = None

    def receive(self, event: Event) -> None:
        if isinstance(event, Opening):
            self._weights = event.weights
            if event.step:
                self._progress.line(f"resumed from step {event.step}")
        elif isinstance(event, InnerStep):
            self._progress.update(
                event.step,
                loss=event.loss,
                target_loss=self._target_loss,
                weights=self._weights,
                tokens_per_second=event.tokens_per_second,
                seconds=event.seconds,
                lr=event.lr,
                grad_norm=event.grad_norm,
                nonfinite_gradients=event.nonfinite_gradients,
            )
        elif isinstance(event, OuterStep):
            self._weights = event.weights
            self._target_loss = mean_target_loss(self._target_weights, event)
        elif isinstance(event, Note):
            self._progress.line(event.text)

    def close(self) -> None:
        self._progress.close()


class TrackerSink:
    """TensorBoard or Weights & Biases."""

    def __init__(
        self,
        tracker: Tracker,
        config: SearchConfig,
        folder: RunFolder | None = None,
        draw: Draw | None = None,
    ) -> None:
        self._tracker = tracker
        self._folder, self._draw = folder, draw
        self._picture_every = max(1, config.training.train_iters // PICTURES)
        self._pictured = 0
        self._batch_size = config.training.global_batch_size
        self._target_weights = config.target_weights

    def receive(self, event: Event) -> None:
        if isinstance(event, InnerStep):
            scalars = inner_scalars(event, self._batch_size)
        elif isinstance(event, OuterStep):
            scalars = outer_scalars(event, mean_target_loss(self._target_weights, event))
        else:
            due = event.step - self._pictured >= self._picture_every
            if isinstance(event, RunEnd) or (isinstance(event, CheckpointBegun) and due):
                self._show(event.step)
            return
        self._tracker.log(scalars, event.step, event.step * self._batch_size)

    def _show(self, step: int) -> None:
        if self._draw is None or self._folder is None:
            return
        self._pictured = step
        pixels = self._draw(self._folder.metrics)
        if pixels is not None:
            self._tracker.picture("fastmix/weights and advantages", pixels, step)

    def close(self) -> None:
        self._tracker.close()


def mean_target_loss(target_weights: Sequence[float], event: OuterStep) -> float:
    """Nats per token, by the weights of the configuration: with moving ω the curve would jump with
    them."""
    return float(np.dot(target_weights, list(event.target_loss.values())))

"""What a search tells: its steps as events, handed to every sink."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.mixture.optimality import Evidence
from megatron_fastmix.program import give_up_output
from megatron_fastmix.run.events import (
    CheckpointBegun,
    Event,
    InnerStep,
    Note,
    Opening,
    OuterStep,
    RunEnd,
    RunStart,
    Sink,
)
from megatron_fastmix.run.sinks import MetricsSink, TerminalSink
from megatron_fastmix.search.group_figures import group_evidence, group_losses
from megatron_fastmix.search.outer_step import OuterResult
from megatron_fastmix.search.unseen import Unseen
from megatron_fastmix.storage import describe

NOISE_WARNING = 1.0
"""Estimates whose standard error exceeds this many spreads between sources are called noise."""


class Reporter:
    """Turns what happens into events; ranks other than 0 have no sinks."""

    def __init__(
        self,
        config: SearchConfig,
        mixture: Mixture,
        sinks: Sequence[Sink],
        step: int,
        *,
        tokens: int,
        parameters: int | None = None,
        warnings: Sequence[str] = (),
        earlier: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """`step` steps on `tokens` tokens are done, and `earlier` are the lines of the metrics that
        they left."""
        self._tokens = tokens
        self.parameters = parameters
        self.config = config
        self.mixture = mixture
        self.sinks = list(sinks)
        self.failure: OSError | None = None
        """What kept the metrics from being written: the search is to end with a checkpoint."""
        self._waiting: list[Event] = []
        self._stack = contextlib.ExitStack()
        for sink in sinks:
            self._stack.callback(_close, sink)
        self._noisy = 0
        self._noise_told = False
        self._unseen = Unseen(mixture.grouping.names, config.hypergradient.probe_samples)
        self._evidence = Evidence(len(mixture.grouping.names))
        for line in earlier:
            if line["kind"] == "outer":
                self._take_up(line)
        self._last = time.monotonic()
        self._outer_seconds = 0.0
        if sinks and step == 0:
            self._send(self._start(warnings))
        self._send(Opening(step=step, weights=self._by_source(mixture.weights)))

    def inner(
        self,
        step: int,
        loss: float,
        source_losses: np.ndarray,
        lr: float,
        grad_norm: float | None,
        tokens: int,
        data_seconds: float | None = None,
        nonfinite_gradients: int = 0,
        counts: np.ndarray | None = None,
    ) -> None:
        """Step `step` is done; `source_losses` (K,) are unweighted means over `counts` samples
        (K,), NaN where none was drawn; `tokens` are trained on so far; `data_seconds` of it went
        into waiting for batches; `grad_norm` is NaN where it was not finite, as it was not in
        `nonfinite_gradients` steps so far."""
        now = time.monotonic()
        seconds = max(now - self._last, 1e-9)
        self._last = now
        new_tokens = tokens - self._tokens
        self._tokens = tokens
        groups, group_loss = self.mixture.groups, None
        if groups is not None and counts is not None:
            group_loss = _by_name(groups.names, group_losses(groups, source_losses, counts))
        self._send(
            InnerStep(
                step=step,
                loss=loss,
                source_loss=self._by_source(source_losses),
                lr=lr,
                grad_norm=grad_norm,
                tokens=tokens,
                tokens_per_second=new_tokens / seconds,
                seconds=seconds,
                data_seconds=data_seconds,
                nonfinite_gradients=nonfinite_gradients,
                group_loss=group_loss,
            )
        )
        if grad_norm is not None and math.isnan(grad_norm):
            self._note(
                step,
                "the norm of the gradient is NaN or Inf, so that DeepSpeed skips the step (such "
                f"steps so far: {nonfinite_gradients}); lower training.lr or raise "
                "training.lr_warmup_iters",
            )

    def outer_begun(self, seconds: float) -> None:
        """`seconds` of an outer step were spent before the optimizer step that is its probe."""
        self._outer_seconds = seconds
        self._last += seconds  # the throughput is that of the inner steps

    def outer(self, step: int, result: OuterResult) -> None:
        """An outer step was taken after `step` optimizer steps."""
        seconds, self._outer_seconds = self._outer_seconds + result.seconds, 0.0
        self._last += result.seconds
        products, mixture = result.products, self.mixture
        each = result.target_products
        self._send(
            OuterStep(
                step=step,
                outer_step=mixture.outer_steps,
                weights=self._by_source(mixture.weights),
                logits=self._by_source(mixture.logits),
                products=self._by_source(products.measured),
                products_standard_error=self._by_source(products.standard_error),
                noise_to_signal=result.noise_to_signal,
                hypergradient=self._by_source(result.gradient),
                advantage=self._by_source(result.advantage),
                advantage_standard_error=self._by_source(result.advantage_standard_error),
                probe_samples=self._by_source(products.counts),
                lr=result.lr,
                target_products=None
                if each is None
                else {
                    target.name: self._by_source(np.where(products.seen, values, np.nan))
                    for target, values in zip(self.config.targets, each, strict=True)
                },
                target_loss=self._by_target(result.target_losses),
                target_weight=self._by_target(result.target_weights),
                seconds=seconds,
                **self._of_groups(result),
            )
        )
        unseen = self._unseen.step(result.group_seen)
        if unseen is not None:
            self._note(step, unseen)
        self._warn_of_noise(step, result)

    def checkpoint(self, step: int, name: str, seconds: float) -> None:
        """The checkpoint `name` is on its way to disk; training stood still for `seconds`."""
        self._send(CheckpointBegun(step=step, path=name, seconds=seconds))
        self._last += seconds

    def end(self, step: int, *, complete: bool, training_flops: float | None = None) -> None:
        """The run ends here; `training_flops` are those of all its parts."""
        self._send_what_waits()
        unseen = self._unseen.total()
        if unseen is not None:
            self._note(step, unseen)
        self._send(RunEnd(step=step, complete=complete, training_flops=training_flops))

    def _start(self, warnings: Sequence[str]) -> RunStart:
        return RunStart(
            step=0,
            sources=self.mixture.names,
            targets=[target.name for target in self.config.targets],
            initial_weights=self._by_source(self.mixture.weights),
            config=strict_yaml.to_dict(self.config),
            parameters=self.parameters,
            warnings=warnings,
        )

    def _of_groups(self, result: OuterResult) -> dict[str, dict[str, float]]:
        """What an outer step has for the groups of the configuration; empty without any."""
        mixture, groups = self.mixture, self.mixture.groups
        if groups is None:
            return {}
        advantage, error = result.group_advantage, result.group_advantage_standard_error
        if groups is not mixture.grouping:  # sources have the logits
            found = group_evidence(groups, mixture.history[-2], result.products, result.advantage)
            advantage, error = found.advantage, found.standard_error
        return {
            "group_weights": _by_name(groups.names, groups.sums(mixture.weights)),
            "group_advantage": _by_name(groups.names, advantage),
            "group_advantage_standard_error": _by_name(groups.names, error),
        }

    def _take_up(self, line: Mapping[str, Any]) -> None:
        """What an outer step before this process has shown, and its notes have said."""
        learned = "advantage" if self.mixture.grouping.is_trivial else "group_advantage"
        each = [line.get(key) for key in (learned, f"{learned}_standard_error", "probe_samples")]
        value, error, samples = (np.array(list((found or {}).values()), float) for found in each)
        if len(value) == len(error) == len(self.mixture.grouping.names):
            self._noise_told |= self._noise_is_due(line.get("noise_to_signal"), value, error)
        if len(samples) == len(self.mixture.names):
            self._unseen.step(self.mixture.grouping.seen(samples > 0))

    def _noise_is_due(
        self, noise: float | None, advantage: np.ndarray, standard_error: np.ndarray
    ) -> bool:
        """Whether it is to be said after an outer step that the estimates are noise."""
        self._evidence.add(advantage, standard_error)
        # That single estimates cannot tell sources apart is no fault where all together do.
        if self._evidence.tells_apart:
            self._noisy = 0
            return False
        self._noisy = self._noisy + 1 if noise is not None and noise > NOISE_WARNING else 0
        return self._noisy == 3

    def _warn_of_noise(self, step: int, result: OuterResult) -> None:
        noise = result.noise_to_signal
        drawn = self.config.hypergradient.probe_samples is not None
        probe = "probe_samples" if drawn else "probe_samples_per_source"
        due = self._noise_is_due(
            noise, result.group_advantage, result.group_advantage_standard_error
        )
        if due and not self._noise_told:
            self._noise_told = True  # the result's verdict says whether it stayed so
            self._note(
                step,
                f"the last 3 estimates were noise (standard error {noise:.1f} times the spread "
                "between sources), and all so far tell no source from the others; raise "
                f"hypergradient.{probe} or hypergradient.target_samples",
            )

    def _note(self, step: int, text: str) -> None:
        self._send(Note(step=step, text=f"step {step}: {text}"))

    def _send(self, event: Event) -> None:
        """Hands the event to every sink. Where the metrics cannot be written, `failure` says so and
        later events wait for `end`; another sink that cannot write is passed over from then on."""
        for sink in list(self.sinks):
            if self._waiting and sink is self.sinks[0]:
                self._waiting.append(event)
                continue
            try:
                sink.receive(event)
            except OSError as error:
                if isinstance(sink, MetricsSink):
                    self.failure = error
                    self._waiting.append(event)
                else:
                    self._pass_over(sink, describe(error))
            except Exception as error:
                if isinstance(sink, MetricsSink):
                    raise
                self._pass_over(sink, f"{type(error).__name__}: {error}")

    def _pass_over(self, sink: Sink, reason: str) -> None:
        self.sinks.remove(sink)
        told = sys.stdout
        if isinstance(sink, TerminalSink):
            give_up_output()
            told = sys.stderr
        with contextlib.suppress(OSError):
            print(f"megatron-fastmix: {reason}: not logged there any longer", file=told)

    def _send_what_waits(self) -> None:
        """The file system may be back, and then nothing is missing from the metrics."""
        with contextlib.suppress(OSError):
            while self._waiting:
                self.sinks[0].receive(self._waiting[0])
                self._waiting.pop(0)

    def _by_source(self, values: Any) -> dict[str, float]:
        return _by_name(self.mixture.names, values)

    def _by_target(self, values: np.ndarray) -> dict[str, float]:
        return _by_name([target.name for target in self.config.targets], values)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _by_name(names: Sequence[str], values: Any) -> dict[str, float]:
    return dict(zip(names, map(float, values), strict=True))


def _close(sink: Sink) -> None:
    # What it could not write was told; a tracker has errors of its own.
    with contextlib.suppress(OSError if isinstance(sink, MetricsSink) else Exception):
        sink.close()

"""The search: train the proxy, and every n1 steps move the mixture. Read this file first."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from megatron_fastmix.blend.order.spread_order import DRAW_ORDER
from megatron_fastmix.checkpoint import store
from megatron_fastmix.checkpoint.identity import check_identity
from megatron_fastmix.checkpoint.store import SearchState
from megatron_fastmix.checkpoint.stored_parameters import StoredParameters
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.deepspeed_engine.engine import (
    follow_schedule,
    gradient_norm,
    learning_rate,
    whole_parameters,
)
from megatron_fastmix.deepspeed_engine.state import restore, snapshot
from megatron_fastmix.errors import CheckpointError, NonFiniteError, StorageError
from megatron_fastmix.export.run_files import write_mixture_files
from megatron_fastmix.parallel.device import local_device
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.proxy.cost import flops_per_token, outer_step_tokens
from megatron_fastmix.report.tracker_picture import progress_picture
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.run.events import Sink
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.run.sinks import open_sinks
from megatron_fastmix.search.assembly import assemble
from megatron_fastmix.search.copies import copied_targets
from megatron_fastmix.search.earlier_draws import check_draws
from megatron_fastmix.search.inner_step import inner_step
from megatron_fastmix.search.outcome import search_outcome
from megatron_fastmix.search.reporter import Reporter
from megatron_fastmix.storage import describe


def raise_where_failed(
    world: DataParallelGroup, failure: OSError | None, path: str, stays: str
) -> None:
    """Raises `StorageError` on all ranks where rank 0 could not write `path`. Every rank must
    call."""
    if world.any(failure is not None):
        told = (
            f"cannot write {describe(failure, path)}" if failure else f"{path}: cannot be written"
        )
        raise StorageError(f"{told}; {stays}", is_echo=failure is None)


class Search:
    """One rank's part of a search."""

    def __init__(
        self,
        config: SearchConfig,
        device: torch.device | None = None,
        *,
        accept_changes: bool = False,
    ) -> None:
        """Builds the search, or resumes it from the newest checkpoint in its run folder.

        `device` is by default this rank's. With `accept_changes`, datasets may have other content
        than the checkpoint was trained on, and a release of another order of draws may have written
        it. Every rank must call, with torch.distributed initialised. Raises what `assemble`,
        `check_identity` and `check_draws` raise, and `CheckpointError`.
        """
        self.config = config
        parts = assemble(config, device or local_device())
        self.folder, self.inputs, self.identity = parts.folder, parts.inputs, parts.identity
        self.world, self.group, self.tensor = parts.world, parts.group, parts.tensor
        self.mixture, self.targets, self.batches = parts.mixture, parts.targets, parts.batches
        self.engine, self.outer_loop = parts.engine, parts.outer_loop
        self.checkpoints = parts.checkpoints

        self.step = 0
        self.tokens = 0
        length = config.data.seq_length
        self._sample_tokens = self.inputs.tokens_of_samples(length)
        self._outer_step_tokens = outer_step_tokens(
            config,
            source_tokens=self.inputs.tokens_per_sample(length),
            target_tokens=self.inputs.tokens_per_target_sample(length),
        )
        self._parameters = whole_parameters(self.engine, self.tensor)
        self._flops_per_token = flops_per_token(
            config.proxy, self.inputs.tokenizer.vocab_size, length, parameters=self._parameters
        )
        self.first_target_losses: list[float] | None = None
        self.last_target_losses: list[float] | None = None
        self.nonfinite_gradients = 0
        self.stop_signalled = False
        self._seconds_before = 0.0
        self._began = time.monotonic()
        state = store.latest(self.folder, self.world)
        if state is not None:
            check_identity(state.identity, self.identity, accept_changes=accept_changes)
            check_draws(state, config, accept_changes=accept_changes)
            self._restore(state)
        self.outer_loop.agree()

    def run(self) -> bool:
        """Trains until the last step, or until a stop is requested; returns whether the search is
        complete.

        Every rank must call. Raises `NonFiniteError`, `RankDivergenceError`, and `CheckpointError`
        where one cannot be written; the checkpoints written before stay. Where the metrics cannot
        be written, a checkpoint ends the search and `StorageError` is raised.
        """
        total, n1 = self.config.training.train_iters, self.config.mixture.inner_steps
        if self.step == total:
            return True
        with self.open_report() as report, self._last_checkpoint_kept():
            self.outer_loop.check_estimator()
            stop = False
            while self.step < total and not stop:
                # Inner loop: n1 optimizer steps of the proxy with α fixed.
                while True:
                    stop = self.inner_step(report)
                    if stop or self.step == total or self.step % n1 == 0:
                        break
                    self._save_where_due(report)
                # Outer loop: one step of the mixture.
                if self.step % n1 == 0:
                    self.outer_step(report)
                self._save_where_due(report, last=stop or self.step == total)
            self.checkpoints.finish()
            complete = self.step == total
            report.end(self.step, complete=complete, training_flops=self.training_flops)
        stays = f"the same command resumes from the checkpoint of step {self.step}"
        raise_where_failed(self.world, report.failure, str(self.folder.metrics), stays)
        return complete

    @contextlib.contextmanager
    def _last_checkpoint_kept(self) -> Iterator[None]:
        """Where numbers stop being finite, the checkpoint under way is of before and is finished:
        all ranks raise that error together."""
        try:
            yield
        except NonFiniteError:
            with contextlib.suppress(CheckpointError):  # a rank has said why
                self.checkpoints.finish()
            raise

    def inner_step(self, report: Reporter) -> bool:
        """One optimizer step of the proxy; returns whether a stop was requested.

        Every rank must call. Raises what `run` raises.
        """
        lr = learning_rate(self.config.training, self.step)
        probe = None
        if self._probes_training and (self.step + 1) % self.config.mixture.inner_steps == 0:
            began = time.monotonic()
            probe = self.outer_loop.begin(self.step)
            report.outer_begun(time.monotonic() - began)
        weights = self.mixture.loss_weights
        self.tokens += self._tokens_of(self.step)
        sums, counts = inner_step(self.engine, self.batches, self.step, weights, probe)
        self.step += 1
        follow_schedule(self.engine, self.step)
        sums, counts, stop = self._reduce(sums, counts, report)
        mean = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        grad_norm = gradient_norm(self.engine)
        self.nonfinite_gradients += grad_norm is not None and math.isnan(grad_norm)
        report.inner(
            self.step,
            float(sums.sum() / counts.sum()),
            mean,
            lr,
            grad_norm,
            self.tokens,
            self.batches.take_seconds(),
            self.nonfinite_gradients,
            counts,
        )
        return stop

    def outer_step(self, report: Reporter) -> None:
        """One step of the mixture. Every rank must call. Raises what `run` raises."""
        # η of the step whose effect on the target the hypergradient predicts: the one to come, or
        # the last where that one's own batch was the probe, and where a schedule has ended at 0.
        training = self.config.training
        inner_lr = learning_rate(training, self.step - self._probes_training)
        inner_lr = inner_lr or learning_rate(training, self.step - 1)
        result = self.outer_loop.step(inner_lr)
        self.last_target_losses = result.target_losses.tolist()
        self.first_target_losses = self.first_target_losses or self.last_target_losses
        report.outer(self.step, result)

    @property
    def _probes_training(self) -> bool:
        return self.config.hypergradient.probe == "training"

    def open_report(self) -> Reporter:
        """Where this rank tells its steps; nowhere but on rank 0."""
        sinks: list[Sink] = []
        earlier: list[dict[str, Any]] = []
        warnings = []
        if self.world.rank == 0:
            warnings = [] if self.step else copied_targets(self.config)
            sinks = open_sinks(self.config, self.folder, self.step, draw=progress_picture)
            earlier = read_metrics(self.folder.metrics) if self.step else []
        return Reporter(
            self.config,
            self.mixture,
            sinks,
            self.step,
            tokens=self.tokens,
            parameters=self._parameters,
            warnings=warnings,
            earlier=earlier,
        )

    def _tokens_of(self, step: int) -> int:
        """Tokens of global batch `step`, those of an answer-only row being its source's mean."""
        each = self._sample_tokens
        if not np.ptp(each):
            return round(self.config.training.global_batch_size * each[0])
        return round(each[self.batches.sources_of(step)].sum())

    @property
    def training_flops(self) -> float:
        """Floating-point operations of the inner and outer steps so far."""
        outer = self.mixture.outer_steps * self._outer_step_tokens / 3.0
        return (self.tokens + outer) * self._flops_per_token

    def state(self) -> SearchState:
        """Everything of this search that DeepSpeed does not keep."""
        return SearchState(
            step=self.step,
            tokens=self.tokens,
            seconds=self._seconds_before + time.monotonic() - self._began,
            mixture=self.mixture.state(),
            target_weights=self.targets.weights.tolist(),
            initial_target_losses=self.first_target_losses,
            final_target_losses=self.last_target_losses,
            data_parallel_size=self.group.size,
            identity=self.identity,
            nonfinite_gradients=self.nonfinite_gradients,
            draw_order=DRAW_ORDER,
        )

    def result(self) -> LearnedMixture:
        """The mixture learned so far, with what it cost."""
        found = search_outcome(self.config, self.mixture, self.state(), self.training_flops)
        return found.learned_mixture(self.config, self.inputs)

    def _reduce(
        self, sums: np.ndarray, counts: np.ndarray, report: Reporter
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Sums losses and counts by source over the ranks; also whether any was asked to stop.

        The same collective tells whether all have written their part of a checkpoint.
        """
        asked = self.stop_signalled or report.failure is not None
        asked |= self.world.rank == 0 and self.folder.stop_requested()
        # Tensor-parallel ranks count the same samples again, in sums and counts alike.
        parts = (sums, counts, [float(asked)], self.checkpoints.progress)
        reduced = self.world.sum(np.concatenate(parts))
        sums, counts = reduced[: len(sums)], reduced[len(sums) : -3]
        for name, value in zip(self.mixture.names, sums, strict=True):
            if not np.isfinite(value):
                raise NonFiniteError(
                    f"step {self.step}: the loss of source {name} is {value}; lower training.lr "
                    "or raise training.lr_warmup_iters; the last good checkpoint stays in "
                    f"{self.folder.checkpoints}"
                )
        self.checkpoints.advance(*reduced[-2:])
        return sums, counts, bool(reduced[-3])

    def _save_where_due(self, report: Reporter, *, last: bool = False) -> None:
        if not (last or self.step % self.config.output.save_interval == 0):
            return
        began = time.monotonic()
        self.checkpoints.finish()  # a host has room for one copy of the state
        self.checkpoints.begin(self.state(), snapshot(self.engine, self.group))
        if self.world.rank == 0 and self.step < self.config.training.train_iters:
            # Of a finished search it is written when the last checkpoint is known to be whole.
            try:
                write_mixture_files(self.folder.path, self.result())
            except OSError as error:  # the checkpoint is worth more
                report.failure = report.failure or error
        name = self.folder.checkpoint(self.step).name
        report.checkpoint(self.step, name, time.monotonic() - began)

    def _restore(self, state: SearchState) -> None:
        files = store.rank_files(self.folder, state.step, self.tensor.rank)
        stored = StoredParameters(files)
        restore(self.engine, self.group, stored, state.step)
        self.checkpoints.resumed(state.step)
        self.mixture.load_state(state.mixture)
        self.targets.load_state(state.target_weights)
        self.step, self.tokens = state.step, state.tokens
        self.nonfinite_gradients = state.nonfinite_gradients
        self._seconds_before = state.seconds
        self.first_target_losses = state.initial_target_losses
        self.last_target_losses = state.final_target_losses

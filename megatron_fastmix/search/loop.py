"""The search: train the proxy, and every n1 steps move the mixture. Read this file first."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from megatron.core import parallel_state

from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.batch.sources import build_source_blend, build_targets
from megatron_fastmix.checkpoint import store as checkpoint
from megatron_fastmix.checkpoint.identity import (
    check_identity,
    check_same_on_all_ranks,
    identity_of,
)
from megatron_fastmix.checkpoint.store import CheckpointWriter, SearchState
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.deepspeed_engine.engine import (
    build_engine,
    engine_parameters,
    engine_preconditioner,
    learning_rate,
)
from megatron_fastmix.deepspeed_engine.state import StoredParameters, restore, snapshot
from megatron_fastmix.errors import NonFiniteError
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.mixture.objective import AGGREGATIONS
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.proxy.build import flops_per_token
from megatron_fastmix.proxy.megatron_gpt import initialize_parallel_state
from megatron_fastmix.result.mixture_file import MixtureFile
from megatron_fastmix.run import folder as run_folder
from megatron_fastmix.run.reporter import Reporter
from megatron_fastmix.search.inner_step import inner_step
from megatron_fastmix.search.inputs import check_inputs
from megatron_fastmix.search.outcome import outer_step_forward_passes, search_outcome
from megatron_fastmix.search.outer_step import OuterLoop


class Search:
    """One rank's part of a search."""

    def __init__(
        self, config: SearchConfig, device: str = "cpu", *, accept_changes: bool = False
    ) -> None:
        """Builds the search, or resumes it from the newest checkpoint in its run folder.

        With `accept_changes`, datasets may have other content than the checkpoint was trained on.
        Every rank must call, with torch.distributed initialised. Raises what `check_inputs`
        raises, `CheckpointError`, and `RankDivergenceError` where ranks read different data.
        """
        initialize_parallel_state(config.engine.tensor_model_parallel_size)
        self.config = config
        self.folder = Path(config.run_dir)
        self.world = DataParallelGroup(device=device)
        self.group = DataParallelGroup(parallel_state.get_data_parallel_group(), device)
        self.tensor = DataParallelGroup(parallel_state.get_tensor_model_parallel_group(), device)
        self.inputs = check_inputs(config, self.world.size)
        tokenizer = self.inputs.tokenizer
        self.identity = identity_of(config, tokenizer.sha256)
        check_same_on_all_ranks(self.identity, self.world)
        cache = config.data.data_cache_path or str(self.folder / "cache")

        self.mixture = Mixture(
            config.source_names,
            config.mixture,
            bounds=config.bounds,
            total_steps=config.outer_steps,
        )
        self.targets = AGGREGATIONS[config.objective.target_aggregation](
            config.target_weights, [t.reference_loss for t in config.targets], config.objective
        )
        blend = build_source_blend(config, self.mixture, tokenizer, cache)
        targets = build_targets(config, tokenizer, cache)
        self.batches = Batches(config, blend, targets, self.group)
        self.engine = build_engine(config, tokenizer.vocab_size, self.group.size)
        self.outer_loop = OuterLoop(
            config,
            self.engine.module,
            engine_parameters(self.engine, self.group, self.tensor),
            self.batches,
            self.mixture,
            self.targets,
            self.world,
            engine_preconditioner(self.engine, config),
        )

        self.step = 0
        self.first_target_losses: list[float] | None = None
        self.last_target_losses: list[float] | None = None
        self.stop_signalled = False
        self._seconds_before = 0.0
        self._began = time.monotonic()
        self.checkpoints = CheckpointWriter(
            self.folder, self.world, self.group, self.tensor, config.output.keep_checkpoints
        )
        state = checkpoint.latest(self.folder, self.world)
        if state is not None:
            check_identity(state.identity, self.identity, accept_changes=accept_changes)
            self._restore(state)

    def run(self) -> bool:
        """Trains to the last step or until a stop is asked for; returns whether it was the last.

        Every rank must call. Raises `NonFiniteError`, `RankDivergenceError`, and `CheckpointError`
        where one cannot be written; the checkpoints written before stay.
        """
        training, output = self.config.training, self.config.output
        if self.step == training.train_iters:
            return True
        active = self.world.rank == 0
        with Reporter(
            self.config,
            self.mixture,
            self.folder,
            self.step,
            tokens_per_step=self.tokens_per_step,
            active=active,
        ) as report:
            stop = False
            while self.step < training.train_iters and not stop:
                stop = self.advance(report)
                last = self.step == training.train_iters
                if last or stop or self.step % output.save_interval == 0:
                    self._save(report)
            self.checkpoints.finish()
            report.end(
                self.step,
                complete=self.step == training.train_iters,
                training_flops=self.training_flops,
            )
        return self.step == training.train_iters

    def advance(self, report: Reporter) -> bool:
        """One optimizer step, and the outer step where one is due; returns whether to stop.

        Every rank must call. Raises what `run` raises.
        """
        lr = learning_rate(self.config.training, self.step)
        sums, counts = inner_step(self.engine, self.batches, self.step, self.mixture.loss_weights)
        self.step += 1
        sums, counts, stop = self._reduce(sums, counts)
        mean = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        grad_norm = self.engine.get_global_grad_norm()
        report.inner(
            self.step,
            float(sums.sum() / counts.sum()),
            mean,
            lr,
            None if grad_norm is None else float(grad_norm),
            self.batches.take_seconds(),
        )
        if self.step % self.config.mixture.inner_steps == 0:
            self._outer_step(report)
        return stop

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch; for answer-only rows their mean."""
        each = self.inputs.tokens_per_sample(self.config.data.seq_length)
        return round(self.config.training.global_batch_size * each)

    def state(self) -> SearchState:
        """Everything of this search that DeepSpeed does not keep."""
        return SearchState(
            step=self.step,
            tokens=self.step * self.tokens_per_step,
            seconds=self._seconds_before + time.monotonic() - self._began,
            mixture=self.mixture.state(),
            target_weights=self.targets.weights.tolist(),
            initial_target_losses=self.first_target_losses,
            final_target_losses=self.last_target_losses,
            data_parallel_size=self.group.size,
            identity=self.identity,
        )

    @property
    def training_flops(self) -> float:
        """Floating-point operations of the inner and outer steps so far."""
        config = self.config
        # A training step is a forward and a backward pass, which costs as much as two forward ones.
        passes = 3.0 * self.step * config.training.global_batch_size
        passes += self.mixture.outer_steps * outer_step_forward_passes(config)
        seq_length = config.data.seq_length
        per_token = flops_per_token(config.proxy, self.inputs.tokenizer.vocab_size, seq_length)
        return passes / 3.0 * self.inputs.tokens_per_sample(seq_length) * per_token

    def result(self) -> MixtureFile:
        """The mixture learned so far, with what it cost."""
        found = search_outcome(self.config, self.mixture, self.state(), self.training_flops)
        return found.mixture_file(self.config, self.inputs)

    def _outer_step(self, report: Reporter) -> None:
        # η of the step to come: the one whose effect on the target the hypergradient predicts.
        inner_lr = learning_rate(self.config.training, self.step)
        result = self.outer_loop.step(inner_lr)
        self.last_target_losses = result.target_losses.tolist()
        self.first_target_losses = self.first_target_losses or self.last_target_losses
        report.outer(self.step, result)

    def _reduce(self, sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Sums losses and counts by source over the ranks; also whether any was asked to stop.

        The same collective tells whether all have written their part of a checkpoint.
        """
        asked = self.stop_signalled
        asked |= self.world.rank == 0 and run_folder.stop_requested(self.folder)
        # Tensor-parallel ranks count the same samples again, in sums and counts alike.
        parts = (sums, counts, [float(asked)], self.checkpoints.progress)
        reduced = self.world.sum(np.concatenate(parts))
        sums, counts = reduced[: len(sums)], reduced[len(sums) : -3]
        for name, value in zip(self.mixture.names, sums, strict=True):
            if not np.isfinite(value):
                raise NonFiniteError(
                    f"step {self.step}: the loss of source {name} is {value}; lower training.lr "
                    "or raise training.lr_warmup_iters; the last good checkpoint stays in "
                    f"{self.folder / 'checkpoints'}"
                )
        self.checkpoints.advance(*reduced[-2:])
        return sums, counts, bool(reduced[-3])

    def _save(self, report: Reporter) -> None:
        began = time.monotonic()
        arrays = snapshot(self.engine, self.group)
        self.checkpoints.begin(self.state(), arrays)
        folder = checkpoint.step_folder(self.folder, self.step)
        report.checkpoint(self.step, folder, time.monotonic() - began)

    def _restore(self, state: SearchState) -> None:
        stored = StoredParameters(checkpoint.rank_files(self.folder, state.step, self.tensor.rank))
        restore(self.engine, self.group, stored, state.step)
        stored.close()
        self.checkpoints.resumed(state.step)
        self.mixture.load_state(state.mixture)
        self.targets.load_state(state.target_weights)
        self.step = state.step
        self._seconds_before = state.seconds
        self.first_target_losses = state.initial_target_losses
        self.last_target_losses = state.final_target_losses

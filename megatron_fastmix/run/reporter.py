"""What rank 0 shows and writes while a search runs; silent on the other ranks."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.corpus.indexed_files import inspect_indexed_dataset
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.run.metrics import MetricsLog
from megatron_fastmix.run.progress import Progress
from megatron_fastmix.run.trackers import inner_figures, open_trackers, outer_figures
from megatron_fastmix.search.outer_step import OuterResult

NOISE_WARNING = 1.0
"""Estimates whose standard error exceeds this many spreads between sources are called noise."""


class Reporter:
    """Progress on the terminal, lines in `metrics.jsonl`, and figures for the trackers."""

    def __init__(
        self,
        config: SearchConfig,
        mixture: Mixture,
        folder: Path,
        step: int,
        *,
        tokens_per_step: int,
        active: bool,
    ) -> None:
        """`step` steps are done; lines of later steps, left by a run that died, are dropped."""
        self.tokens_per_step = tokens_per_step
        self.config = config
        self.mixture = mixture
        self.target_loss: float | None = None
        self._stack = contextlib.ExitStack()
        self._metrics: MetricsLog | None = None
        self._noisy = 0
        self._last = time.monotonic()
        if not active:
            return
        self._metrics = self._stack.enter_context(MetricsLog(folder / "metrics.jsonl"))
        self._progress = self._stack.enter_context(
            Progress(
                config.training.train_iters,
                initial=step,
                log_interval=config.output.log_interval,
                global_batch_size=config.training.global_batch_size,
            )
        )
        self._trackers = open_trackers(config.output, folder, step, strict_yaml.to_dict(config))
        for tracker in self._trackers:
            self._stack.callback(tracker.close)
        self._metrics.truncate_after(step if step else -1)
        if step == 0:
            sizes = [inspect_indexed_dataset(source.path) for source in config.sources]
            total = sum(size.tokens for size in sizes)
            self._metrics.write(
                "run",
                0,
                sources=mixture.names,
                targets=[target.name for target in config.targets],
                initial_weights=self._by_source(mixture.weights),
                source_tokens={n: s.tokens for n, s in zip(mixture.names, sizes, strict=True)},
                token_budget=config.output.token_budget or total,
                config=strict_yaml.to_dict(config),
            )

    def inner(
        self,
        step: int,
        loss: float,
        source_losses: np.ndarray,
        lr: float,
        grad_norm: float | None,
        data_seconds: float | None = None,
    ) -> None:
        """Step `step` is done; `source_losses` (K,) are unweighted, NaN where none was drawn;
        `data_seconds` of it went into waiting for batches."""
        if self._metrics is None:
            return
        now = time.monotonic()
        tokens = self.tokens_per_step
        seconds = max(now - self._last, 1e-9)
        rate = tokens / seconds
        self._last = now
        self._metrics.write(
            "inner",
            step,
            loss=loss,
            source_loss=self._by_source(source_losses),
            lr=lr,
            grad_norm=grad_norm,
            tokens=step * tokens,
            tokens_per_second=rate,
            **({} if data_seconds is None else {"data_seconds": data_seconds}),
        )
        self._progress.update(
            step,
            loss=loss,
            target_loss=self.target_loss,
            weights=self._by_source(self.mixture.weights),
            tokens_per_second=rate,
            lr=lr,
            grad_norm=grad_norm,
        )

        self._track(
            step,
            inner_figures(
                loss=loss,
                source_loss=self._by_source(source_losses),
                lr=lr,
                grad_norm=grad_norm,
                batch_size=self.config.training.global_batch_size,
                seconds=seconds,
            ),
        )

    def outer(self, step: int, result: OuterResult) -> None:
        """An outer step was taken after `step` optimizer steps."""
        # By the weights of the configuration: with moving ω the curve would jump with them.
        self.target_loss = float(np.dot(self.config.target_weights, result.target_losses))
        if self._metrics is None:
            return
        self._last += result.seconds  # the throughput is that of the inner steps
        products, mixture = result.products, self.mixture
        noise = result.noise_to_signal
        self._metrics.write(
            "outer",
            step,
            outer_step=mixture.outer_steps,
            weights=self._by_source(mixture.weights),
            logits=self._by_source(mixture.logits),
            products=self._by_source(products.values),
            products_standard_error=self._by_source(products.standard_error),
            noise_to_signal=noise,
            hypergradient=self._by_source(result.gradient),
            probe_samples=self._by_source(products.counts),
            lr=result.lr,
            target_products=None
            if result.target_products is None
            else {
                target.name: self._by_source(values)
                for target, values in zip(self.config.targets, result.target_products, strict=True)
            },
            target_loss=self._by_target(result.target_losses),
            target_weight=self._by_target(result.target_weights),
            seconds=result.seconds,
        )
        self._track(
            step,
            outer_figures(
                target_loss=self._by_target(result.target_losses),
                mean_target_loss=self.target_loss,
                weights=self._by_source(mixture.weights),
                products=self._by_source(products.values),
                noise_to_signal=noise,
            ),
        )
        for name, seen in zip(mixture.names, products.seen, strict=True):
            if not seen:
                self.line(f"step {step}: the probe held no sample of {name}; its logit stays")
        self._noisy = self._noisy + 1 if noise is not None and noise > NOISE_WARNING else 0
        if self._noisy == 3:
            self.line(
                f"step {step}: the last 3 estimates were noise (standard error {noise:.1f} times "
                "the spread between sources); raise hypergradient.probe_samples_per_source or "
                "hypergradient.target_samples"
            )

    def checkpoint(self, step: int, folder: Path, seconds: float) -> None:
        """A checkpoint is complete."""
        if self._metrics is not None:
            self._metrics.write("checkpoint", step, path=folder.name, seconds=seconds)
            self._last += seconds

    def end(self, step: int, *, complete: bool, training_flops: float | None = None) -> None:
        """The run ends here; `training_flops` are those of all its parts."""
        if self._metrics is not None:
            self._metrics.write("end", step, complete=complete, training_flops=training_flops)

    def line(self, text: str) -> None:
        """Prints a line."""
        if self._metrics is not None:
            self._progress.line(text)

    def _track(self, step: int, figures: dict[str, float]) -> None:
        samples = step * self.config.training.global_batch_size
        for tracker in self._trackers:
            tracker.log(figures, step, samples)

    def _by_source(self, values: Any) -> dict[str, float]:
        return dict(zip(self.mixture.names, map(float, values), strict=True))

    def _by_target(self, values: np.ndarray) -> dict[str, float]:
        names = [target.name for target in self.config.targets]
        return dict(zip(names, map(float, values), strict=True))

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

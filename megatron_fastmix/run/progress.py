"""What rank 0 shows while a search runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import TextIO

from tqdm import tqdm

LEADING = 3
"""How many sources are shown on a plain line."""
DAY = 24 * 3600
"""Seconds; a time left of that many takes the most characters that are kept free for it."""


class Progress:
    """Progress of a search of `total` optimizer steps, `initial` of them done before.

    Plain lines are Megatron's (`training_log` in `megatron/training/training.py`), so that
    programs which read those can read these; our figures follow after. One comes every
    `log_interval` steps and at the last one; its loss and its tokens per second are means since the
    line before, outer steps and checkpoints included.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        log_interval: int = 10,
        global_batch_size: int | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self.total = total
        self.log_interval = log_interval
        self.global_batch_size = global_batch_size
        self._losses: list[float] = []
        self._tokens = 0.0  # since the line before
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._began = self._last_line = time.monotonic()
        self._initial = self._last_step = initial
        self._bar = (
            tqdm(
                total=total,
                initial=initial,
                file=self._stream,
                dynamic_ncols=True,
                unit="step",
                bar_format="{n_fmt}/{total_fmt} {remaining} left {desc}",
            )
            if self._terminal
            else None
        )

    def update(
        self,
        step: int,
        *,
        loss: float,
        target_loss: float | None,
        weights: Mapping[str, float],
        tokens_per_second: float,
        seconds: float,
        lr: float | None = None,
        grad_norm: float | None = None,
        nonfinite_gradients: int = 0,
    ) -> None:
        """Shows that `step` optimizer steps are done, `nonfinite_gradients` of them with a gradient
        norm of NaN or Inf. `target_loss` is None before the first; `tokens_per_second` are those
        of this step alone, which took `seconds`."""
        if self._bar is not None:
            target = "" if target_loss is None else f" target {target_loss:.3f}"
            text = f"{_thousands(tokens_per_second)} tok/s loss {loss:.3f}{target}"
            # tqdm cuts a line that is too long anywhere, also within a name.
            taken = len(f"{self.total}/{self.total} {_clock(DAY)} left {text} ")
            sources = leading_sources(weights, self._columns() - taken - 1)
            self._bar.set_description_str(f"{text} {sources}".rstrip(), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        self._losses.append(loss)
        self._tokens += tokens_per_second * seconds
        if step % self.log_interval == 0 or step == self.total:
            figures = (target_loss, weights, lr, grad_norm)
            self.line(self._plain_line(step, *figures, nonfinite_gradients))
            self._losses.clear()
            self._tokens = 0.0

    def _columns(self) -> int:
        """Of the terminal; 80 where it does not say."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def line(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _plain_line(
        self,
        step: int,
        target_loss: float | None,
        weights: Mapping[str, float],
        lr: float | None,
        grad_norm: float | None,
        nonfinite_gradients: int,
    ) -> str:
        now = time.monotonic()
        seconds = max(now - self._last_line, 1e-9)
        milliseconds = 1000 * seconds / max(step - self._last_step, 1)
        left = (now - self._began) / max(step - self._initial, 1) * (self.total - step)
        self._last_line, self._last_step = now, step
        batch = self.global_batch_size
        stamp = datetime.now().strftime("%Y-%m-%d %H:%M:%S.%f")
        parts = [f" [{stamp}] iteration {step:8d}/{self.total:8d}"]
        if batch is not None:
            parts.append(f"consumed samples: {step * batch:12d}")
        parts.append(f"elapsed time per iteration (ms): {milliseconds:.1f}")
        if lr is not None:
            parts.append(f"learning rate: {lr:.6E}")
        if batch is not None:
            parts.append(f"global batch size: {batch:5d}")
        parts += [f"lm loss: {statistics.fmean(self._losses):.6E}", "loss scale: 1.0"]
        if grad_norm is not None:
            parts.append(f"grad norm: {grad_norm:.3f}")
        # DeepSpeed skips a step whose gradient is no number; a loss that is none ends the search.
        parts += [
            f"number of skipped iterations: {nonfinite_gradients:3d}",
            f"number of nan iterations: {nonfinite_gradients:3d}",
        ]
        if target_loss is not None:
            parts.append(f"target loss: {target_loss:.6E}")
        parts += [
            f"tokens per second: {self._tokens / seconds:.0f}",
            f"leading sources: {leading_sources(weights)}",
            f"time left: {_clock(left)}",
        ]
        return " | ".join(parts) + " |"


def leading_sources(weights: Mapping[str, float], room: int | None = None) -> str:
    """The heaviest sources, such as `code 0.62, math 0.21, web 0.09`: three, or as many whole ones
    as `room` characters hold."""
    heaviest = sorted(weights, key=lambda name: -weights[name])
    texts = [f"{name} {weights[name]:.2f}" for name in heaviest]
    if room is None:
        return ", ".join(texts[:LEADING])
    while texts and len(", ".join(texts)) > room:
        texts.pop()
    return ", ".join(texts)


def _thousands(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"

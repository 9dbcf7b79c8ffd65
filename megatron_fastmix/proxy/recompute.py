"""Activation recomputation: a layer keeps its input alone, and runs again in the backward pass.

Megatron's own refuses `torch.autograd.grad`, by which the outer step takes gradients, and those of
Hugging Face models do nothing in eval mode.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop


class LayerRuns:
    """The two runs of one call of a layer."""

    def __init__(self) -> None:
        self.again = False
        """Whether this is the second, in the backward pass."""
        self.kept: dict[Any, Any] = {}
        """What hooks of the second run leave for those of the backward pass that follows."""
        self._calls: Counter[str] = Counter()

    def place(self, name: str) -> tuple[str, int]:
        """The call of a module that is running, the same in both runs."""
        self._calls[name] += 1
        return name, self._calls[name]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """While one of them goes on."""
        self._calls.clear()
        token = _RUNS.set(self)
        try:
            yield
        finally:
            _RUNS.reset(token)
            self.again = True


_RUNS: ContextVar[LayerRuns | None] = ContextVar("runs", default=None)


def layer_runs() -> LayerRuns | None:
    """Those of the recomputed layer that is running; None outside of one."""
    return _RUNS.get()


def recompute_layers(layers: Iterable[torch.nn.Module]) -> None:
    """Has each of `layers` run again in the backward pass; parameters and outputs stay the same."""
    for layer in layers:
        layer.forward = _recomputed(layer.forward)  # type: ignore[method-assign]


class _RunsAgain(torch.autograd.Function):
    """The identity, whose backward pass asks for what it saved and so has the layer run again.

    Under ZeRO-3 that must come before the backward pass of any module in the layer: DeepSpeed
    gathers a module's parameters for its backward pass, and the second run, which gathers and
    releases all of them, would leave them empty when their gradients arrive.
    """

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(output)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        _ = ctx.saved_tensors
        return gradient


def _recomputed(forward: Any) -> Any:
    @functools.wraps(forward)
    def marked(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if isinstance(output, torch.Tensor):
            return _RunsAgain.apply(output)
        first, *others = output
        return (_RunsAgain.apply(first), *others)

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        runs = LayerRuns()

        def within(*args: Any, **kwargs: Any) -> Any:
            with runs.entered():
                return marked(*args, **kwargs)

        # Stopping early would leave the hooks out by which ZeRO-3 lets go of the parameters that
        # it gathered for the second run.
        with set_checkpoint_early_stop(False):
            return checkpoint(
                within,
                *args,
                use_reentrant=False,
                # Nothing in the layers is random.
                preserve_rng_state=False,
                # Under ZeRO-3 the weights that the first run saved are empty by now.
                determinism_check="none",
                **kwargs,
            )

    return run

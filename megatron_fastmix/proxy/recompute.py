"""Activation recomputation: a layer keeps its input alone, and runs again in the backward pass.

Megatron's own refuses `torch.autograd.grad`, by which the outer step takes gradients, and those of
Hugging Face models do nothing in eval mode.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop


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
        # Stopping early would leave the hooks out by which ZeRO-3 lets go of the parameters that
        # it gathered for the second run.
        with set_checkpoint_early_stop(False):
            return checkpoint(
                marked,
                *args,
                use_reentrant=False,
                # Nothing in the layers is random.
                preserve_rng_state=False,
                # Under ZeRO-3 the weights that the first run saved are empty by now.
                determinism_check="none",
                **kwargs,
            )

    return run

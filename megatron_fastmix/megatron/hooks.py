"""Where a run meets `megatron.training`: the names of it that are replaced, and those read.

- `global_vars.set_args`: every script hands its parsed arguments to it, before it builds anything.
- `checkpointing.check_checkpoint_args`: gets the arguments that a checkpoint was saved with.
- `training.train_step` and `training.training_log`: one training step, and its line in the log.

Each is called as before; what we do stands around the call.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.megatron.argument_checks import Blend
from megatron_fastmix.megatron.resume import ATTRIBUTE
from megatron_fastmix.megatron.session import Session
from megatron_fastmix.megatron.source_log import log_line, scalars, write_scalars

_REPLACED = (
    ("megatron.training.global_vars", "set_args"),
    ("megatron.training.checkpointing", "check_checkpoint_args"),
    ("megatron.training.training", "train_step"),
    ("megatron.training.training", "training_log"),
)


def has_megatron_training() -> bool:
    """Whether this environment has `megatron.training`, as a Megatron-LM checkout has."""
    return find_spec("megatron.training") is not None


@contextlib.contextmanager
def hooked(session: Session) -> Iterator[None]:
    """`megatron.training` with `session` in it, until the block ends.

    Raises `ConfigError` for a release that lacks one of the names.
    """
    originals: list[tuple[Any, str, Any]] = []
    makers = (_set_args, _check_checkpoint_args, _train_step, _training_log)
    try:
        for (home, name), make in zip(_REPLACED, makers, strict=True):
            module = import_module(home)
            original = getattr(module, name, None)
            if original is None:
                raise ConfigError(
                    f"this Megatron-LM has no {home}.{name}, at which losses and checkpoints are "
                    "joined; use a release that goes with a known megatron-core"
                )
            originals.append((module, name, original))
            setattr(module, name, functools.wraps(original)(make(original, session)))
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def _set_args(original: Callable[..., Any], session: Session) -> Callable[..., Any]:
    def set_args(args: Any) -> Any:
        session.arguments_known(args, _blends(args))
        return original(args)

    return set_args


def _blends(args: Any) -> list[Blend | None]:
    """The blends of the training and the validation split, by Megatron's own rules."""
    from megatron.training.utils import get_blend_and_blend_per_split

    blend, per_split = get_blend_and_blend_per_split(args)
    return [blend, None] if blend is not None else list(per_split or [None, None])[:2]


def _check_checkpoint_args(original: Callable[..., Any], session: Session) -> Callable[..., Any]:
    def check_checkpoint_args(checkpoint_args: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(checkpoint_args, *args, **kwargs)
        consumed = getattr(checkpoint_args, "consumed_train_samples", 0)
        session.checkpoint_known(getattr(checkpoint_args, ATTRIBUTE, None), consumed)
        return result

    return check_checkpoint_args


def _train_step(original: Callable[..., Any], session: Session) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def train_step(*args: Any, **kwargs: Any) -> Any:
        from megatron.training.global_vars import get_args

        session.step_begins()
        first = get_args().consumed_train_samples
        if session.losses is None:
            result = original(*args, **kwargs)
            session.step_ends()
            return result
        bound = signature.bind(*args, **kwargs)
        values = bound.arguments
        values["forward_step_func"] = _watched(values["forward_step_func"], session)
        # Megatron may repeat the passes of a step to tell a fault from a spike.
        session.pass_begins(first)
        passes = values["forward_backward_func"]

        @functools.wraps(passes)
        def forward_backward(*passed: Any, **named: Any) -> Any:
            session.pass_begins(first)
            return passes(*passed, **named)

        values["forward_backward_func"] = forward_backward
        result = original(*bound.args, **bound.kwargs)
        session.step_ends()
        return result

    return train_step


def _watched(forward_step: Callable[..., Any], session: Session) -> Callable[..., Any]:
    losses = session.losses
    assert losses is not None

    @functools.wraps(forward_step)
    def watched(*args: Any, **kwargs: Any) -> Any:
        output, loss_func = forward_step(*args, **kwargs)
        return output, loss_func if loss_func is None else losses.watch(loss_func)

    return watched


def _training_log(original: Callable[..., Any], session: Session) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def training_log(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        log_sources(session, signature.bind(*args, **kwargs).arguments["iteration"])
        return result

    return training_log


def log_sources(session: Session, iteration: int) -> None:
    """The line of an iteration that is a multiple of `--log-interval`. Every rank must call."""
    from megatron.training.global_vars import get_args, get_tensorboard_writer, get_wandb_writer

    args = get_args()
    if iteration % args.log_interval:
        return
    rows = session.rows(args.consumed_train_samples)
    if rows is None or int(os.environ.get("RANK", args.rank)) != args.world_size - 1:
        return
    print(log_line(iteration, rows), flush=True)
    write_scalars(scalars(rows), iteration, get_tensorboard_writer(), get_wandb_writer())

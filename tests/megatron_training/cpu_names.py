"""Megatron's training loop on a machine without CUDA.

It makes small tensors on "cuda" by name, asks which card there is, and keeps streams and random
states of it. Under this mode the name means the CPU; nothing of Megatron is replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch._dynamo import config as dynamo
from torch.overrides import TorchFunctionMode


class _Stream:
    """The one order in which a CPU does things."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


_STAND_INS: list[tuple[Any, str, Any]] = [
    (torch.cuda, "current_device", lambda: "cpu"),
    (torch.cuda, "current_stream", _Stream),
    (torch.cuda, "device_count", lambda: 1),
    (torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=10)),
    (torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state()),
    (torch.cuda.random, "get_rng_state", lambda device=None: torch.get_rng_state()),
    (torch.cuda, "is_available", lambda: True),
    (torch.cuda, "set_rng_state", lambda state, device=None: None),
    (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
    (torch.cuda, "Stream", _Stream),
    (torch.cuda, "synchronize", lambda: None),
    # Loaders pin memory for it, and compiled functions ask it for its stream.
    (torch.accelerator, "is_available", lambda: False),
    (dynamo, "disable", True),
]


class CudaMeansCpu(TorchFunctionMode):
    """Within it, `device="cuda"` and the current device make tensors on the CPU."""

    def __enter__(self) -> Any:
        self._kept = [(home, name, getattr(home, name)) for home, name, _ in _STAND_INS]
        for home, name, stand_in in _STAND_INS:
            setattr(home, name, stand_in)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for home, name, kept in self._kept:
            setattr(home, name, kept)
        super().__exit__(*error)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        named = dict(kwargs or {})
        if str(named.get("device")).startswith("cuda"):
            named["device"] = "cpu"
        return func(*args, **named)

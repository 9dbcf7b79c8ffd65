"""Megatron's training loop on a machine without CUDA.

Its schedules and logs make small tensors on "cuda" by name, and its arguments ask which card there
is. Under this mode the name means the CPU; nothing of Megatron is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_STAND_INS = {
    "current_device": lambda: "cpu",
    "synchronize": lambda: None,
    "get_device_properties": lambda device: SimpleNamespace(major=10),
}


class CudaMeansCpu(TorchFunctionMode):
    """Within it, `device="cuda"` and the current device make tensors on the CPU."""

    def __enter__(self) -> Any:
        self._kept = {name: getattr(torch.cuda, name) for name in _STAND_INS}
        for name, stand_in in _STAND_INS.items():
            setattr(torch.cuda, name, stand_in)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for name, kept in self._kept.items():
            setattr(torch.cuda, name, kept)
        super().__exit__(*error)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if str(named.get("device")).startswith("cuda"):
            named["device"] = "cpu"
        return func(*args, **named)

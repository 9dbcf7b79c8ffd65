"""Rotary positions whose frequencies follow the length of what a model is given.

transformers computes those of `dynamic` and `longrope` anew from the largest position of a batch,
and `dynamic` keeps what it was before. So a sample's loss would change with the samples beside it,
and with those of earlier steps.
"""

from __future__ import annotations

from typing import Any

import torch


def settle_frequencies(model: Any, seq_length: int) -> None:
    """Sets such frequencies for good, to those that samples of `seq_length` tokens have."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
        moving = [layer for layer, kind in by_layer.items() if _moves(kind)]
        if not moving:
            continue
        device = next(iter(module.buffers())).device
        last = torch.full((1, 1), seq_length - 1, device=device)
        for layer in moving:
            with torch.no_grad():
                module(
                    torch.zeros(1, 1, 1, device=device),
                    last,
                    **({} if layer is None else {"layer_type": layer}),
                )
        settled = {**by_layer, **dict.fromkeys(moving, "default")}
        module.rope_type = settled if isinstance(kinds, dict) else settled[None]


def _moves(kind: object) -> bool:
    return isinstance(kind, str) and ("dynamic" in kind or kind == "longrope")

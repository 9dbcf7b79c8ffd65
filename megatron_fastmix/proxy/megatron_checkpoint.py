"""Starting from a distributed checkpoint of Megatron (`torch_dist`), at any parallel sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_fastmix.errors import CheckpointError
from megatron_fastmix.proxy.starting_point import iteration_folder


def load_megatron_checkpoint(model: Any, path: Path) -> None:
    """Puts the model's weights of the newest iteration in `path`, or of the `iter_…` folder that it
    is, into `model`; the optimizer's state in it is left alone.

    Every rank must call: Megatron-core reads each part once and hands it on. Raises
    `CheckpointError` with the names that are missing or of another shape.
    """
    from megatron.core import dist_checkpointing

    folder = iteration_folder(path)
    there = dist_checkpointing.load_tensors_metadata(str(folder))
    by_layer = any(key.startswith("decoder.layers.0.") for key in there)
    wanted = model.sharded_state_dict(metadata={"non_homogeneous_layers": by_layer})
    problems = _problems(wanted, there)
    if problems:
        raise CheckpointError(
            f"proxy.checkpoint: {folder} is of another model ({'; '.join(problems[:5])}); set "
            "proxy.* to the flags that it was trained with"
        )
    loaded = dist_checkpointing.load(wanted, str(folder))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(loaded[name])


def _problems(wanted: dict[str, Any], there: dict[str, Any]) -> list[str]:
    found = []
    for tensor in _tensors(wanted):
        if tensor.key not in there:
            found.append(f"{tensor.key}: only here")
            continue
        shapes = tuple(there[tensor.key].global_shape), tuple(tensor.global_shape)
        if shapes[0] != shapes[1] and not tensor.allow_shape_mismatch:
            found.append(f"{tensor.key}: {shapes[0]} there, {shapes[1]} here")
    return found


def _tensors(wanted: dict[str, Any]) -> list[Any]:
    """The sharded tensors that will be asked for, those that factories make included."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    expanded = dict(wanted)
    apply_factories(expanded)
    pending, tensors = list(expanded.values()), []
    while pending:
        item = pending.pop()
        if isinstance(item, ShardedTensor):
            tensors.append(item)
        elif isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
    return tensors

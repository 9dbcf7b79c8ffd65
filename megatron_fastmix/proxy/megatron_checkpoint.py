"""Starting from a distributed checkpoint of Megatron (`torch_dist`), at any parallel sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.errors import CheckpointError
from megatron_fastmix.proxy.starting_point import iteration_folder

MODEL_PARTS = ("embedding.", "decoder.", "output_layer.")
"""What the names of a model's own tensors begin with. Beside them are the optimizer's, and heads
for tokens further on (`mtp.`), without which the model is the same."""


def load_megatron_checkpoint(model: Any, config: ProxyConfig, path: Path) -> None:
    """Puts the model's weights of the newest iteration in `path`, or of the `iter_…` folder that it
    is, into `model`, made from `config`; the optimizer's state in it is left alone.

    Every rank must call: Megatron-core reads each part once and hands it on. Raises
    `CheckpointError` with the names that only one of the two has, or that are of another shape, and
    with the settings that shapes do not tell.
    """
    from megatron.core import dist_checkpointing

    folder = iteration_folder(path)
    there = dist_checkpointing.load_tensors_metadata(str(folder))
    by_layer = any(key.startswith("decoder.layers.0.") for key in there)
    wanted = model.sharded_state_dict(metadata={"non_homogeneous_layers": by_layer})
    arguments = dist_checkpointing.load_common_state_dict(str(folder)).get("args")
    problems = _problems(wanted, there) + _other_settings(arguments, config)
    if problems:
        raise CheckpointError(
            f"proxy.checkpoint: {folder} is of another model ({'; '.join(problems[:5])}); set "
            "proxy.* to the flags that it was trained with, or, where there is no such key, start "
            "from another checkpoint"
        )
    loaded = dist_checkpointing.load(wanted, str(folder))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(loaded[name])


def _problems(wanted: dict[str, Any], there: dict[str, Any]) -> list[str]:
    tensors = {tensor.key: tensor for tensor in _tensors(wanted)}
    found = [
        f"{key}: only there"
        for key in sorted(there.keys() - tensors.keys())
        if key.startswith(MODEL_PARTS)
    ]
    for key, tensor in tensors.items():
        if key not in there:
            found.append(f"{key}: only here")
            continue
        shapes = tuple(there[key].global_shape), tuple(tensor.global_shape)
        if shapes[0] != shapes[1] and not tensor.allow_shape_mismatch:
            found.append(f"{key}: {shapes[0]} there, {shapes[1]} here")
    return found


def _other_settings(arguments: Any, config: ProxyConfig) -> list[str]:
    """Where Megatron's arguments, if the checkpoint holds them, are of another model than one of
    `config`, though the weights have the same names and shapes."""
    here: dict[str, Any] = {}
    if "*" in (config.hybrid_layer_pattern or "*"):
        here = {
            "position_embedding_type": "rope",
            "rotary_base": config.rotary_base,
            "rotary_percent": config.rotary_percent,
            "rotary_interleaved": False,
            "use_rope_scaling": False,
            "num_attention_heads": config.num_attention_heads,
        }
    if config.num_experts is not None:
        here["moe_router_topk"] = config.moe_router_topk
    found = {name: getattr(arguments, name, None) for name in here}
    return [
        f"{name}: {found[name]} there, {value} here"
        for name, value in here.items()
        if found[name] not in (None, value)
    ]


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

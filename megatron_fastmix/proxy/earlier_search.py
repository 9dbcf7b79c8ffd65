"""Starting from the proxy that an earlier search trained, at whichever tensor-parallel sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state

from megatron_fastmix.checkpoint import store
from megatron_fastmix.checkpoint.stored_parameters import MASTER, StoredParameters
from megatron_fastmix.config import load_config
from megatron_fastmix.errors import CheckpointError
from megatron_fastmix.parallel.device import collective_device
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.run.folder import RunFolder


def load_trained(model: torch.nn.Module, run_dir: Path) -> None:
    """Puts the weights of a search's newest checkpoint into `model`.

    Rows of the embedding that only one of the two models has, for its padding, stay as they are
    here. Every rank must call: they share the check of its files. Raises `CheckpointError` where
    there is no checkpoint, or where its shapes differ.
    """
    run = RunFolder(run_dir)
    state = store.latest(run, DataParallelGroup(device=collective_device()))
    if state is None:
        raise CheckpointError(f"proxy.checkpoint: {run_dir} holds no checkpoint of a search")
    ranks = load_config(run.config).engine.tensor_model_parallel_size
    parts = [StoredParameters(store.rank_files(run, state.step, rank)) for rank in range(ranks)]
    parameters = dict(model.named_parameters())
    only_there = sorted(set(parts[0].names) - set(parameters))
    differing = [f"{name}: only there" for name in only_there]
    for name, parameter in parameters.items():
        try:
            whole = _whole([_read(part, name, parameter) for part in parts], name, parameter)
            _fill(parameter, whole, name)
        except ValueError as error:
            differing.append(f"{name}: {error}")
    if differing:
        raise CheckpointError(
            f"proxy.checkpoint: {run.checkpoint(state.step)} is of another model "
            f"({'; '.join(differing[:5])}); set proxy.* to those of {run.config}"
        )


def _read(stored: StoredParameters, name: str, parameter: Any) -> np.ndarray:
    """One tensor-parallel rank's part, in the parameter's dimensions."""
    numel = stored.numel(name)
    shape = list(parameter.shape)
    if _is_split(parameter):
        shape[parameter.partition_dim] = -1
        others = parameter.numel() // parameter.shape[parameter.partition_dim]
        if not numel or numel % others:
            raise ValueError(f"{numel} elements there, {parameter.numel()} here")
    elif numel != parameter.numel():
        raise ValueError(f"{numel} elements there, {parameter.numel()} here")
    return stored.read(MASTER, name, 0, numel).reshape(shape)


def _whole(parts: list[np.ndarray], name: str, parameter: Any) -> np.ndarray:
    """The parameter of all tensor-parallel ranks."""
    if not _is_split(parameter) or len(parts) == 1:
        return parts[0]
    dim = parameter.partition_dim
    if not _is_gated(name):
        return np.concatenate(parts, axis=dim)
    # Each rank has its part of the gate above its part of the values.
    halves = zip(*(np.split(part, 2, axis=dim) for part in parts), strict=True)
    return np.concatenate([np.concatenate(half, axis=dim) for half in halves], axis=dim)


def _fill(parameter: Any, whole: np.ndarray, name: str) -> None:
    """Copies this rank's part of `whole` into `parameter`."""
    size = parallel_state.get_tensor_model_parallel_world_size() if _is_split(parameter) else 1
    rank = parallel_state.get_tensor_model_parallel_rank() if size > 1 else 0
    dim = parameter.partition_dim if size > 1 else 0
    length = parameter.shape[dim]
    rows_of_tokens = "word_embeddings" in name or "output_layer" in name
    if whole.shape[dim] != length * size and not rows_of_tokens:
        raise ValueError(f"{whole.shape[dim]} along dimension {dim} there, {length * size} here")
    if _is_gated(name) and size > 1:
        halves = [np.split(half, size, axis=dim)[rank] for half in np.split(whole, 2, axis=dim)]
        mine = np.concatenate(halves, axis=dim)
    else:
        mine = np.take(whole, range(rank * length, min((rank + 1) * length, whole.shape[dim])), dim)
    parameter.data.narrow(dim, 0, mine.shape[dim]).copy_(torch.from_numpy(mine))


def _is_split(parameter: Any) -> bool:
    return bool(getattr(parameter, "tensor_model_parallel", False))


def _is_gated(name: str) -> bool:
    return name.endswith("linear_fc1.weight")

"""Which proxy a search trains, and from where it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_fastmix.checkpoint import store
from megatron_fastmix.checkpoint.stored_parameters import MASTER, StoredParameters
from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.errors import CheckpointError
from megatron_fastmix.proxy.huggingface import build_huggingface_proxy
from megatron_fastmix.proxy.megatron_gpt import build_proxy
from megatron_fastmix.proxy.provider import build_provided
from megatron_fastmix.run.folder import RunFolder


def build_model(
    proxy: ProxyConfig,
    *,
    vocab_size: int,
    seq_length: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    tensor_model_parallel_size: int = 1,
) -> Any:
    """A proxy at its start, the same on every rank; called as `model(tokens, positions,
    attention_mask, labels=labels)` for losses, and without labels for logits."""
    if proxy.kind == "huggingface":
        model: Any = build_huggingface_proxy(proxy, seed=seed, dtype=dtype)
        output_layer = model.model.get_output_embeddings().weight
    elif proxy.kind == "provider":
        model = build_provided(
            proxy,
            vocab_size=vocab_size,
            seq_length=seq_length,
            seed=seed,
            dtype=dtype,
            tensor_model_parallel_size=tensor_model_parallel_size,
        )
        output_layer = getattr(getattr(model, "output_layer", None), "weight", None)
    else:
        model = build_proxy(
            proxy,
            vocab_size=vocab_size,
            seq_length=seq_length,
            seed=seed,
            dtype=dtype,
            tensor_model_parallel_size=tensor_model_parallel_size,
        )
        if proxy.checkpoint is not None:
            load_trained(model, Path(proxy.checkpoint))
        output_layer = model.output_layer.weight
        if output_layer is None:
            output_layer = model.shared_embedding_or_output_weight()
    if output_layer is not None:
        output_layer.is_output_layer = True
    return model


def load_trained(model: torch.nn.Module, run_dir: Path) -> None:
    """Puts the weights of a search's newest checkpoint into `model`.

    Raises `CheckpointError` where there is none, or where its shapes differ.
    """

    run = RunFolder(run_dir)
    state = store.latest(run)
    if state is None:
        raise CheckpointError(f"proxy.checkpoint: {run_dir} holds no checkpoint of a search")
    folder = run.checkpoint(state.step)
    stored = StoredParameters(store.rank_files(run, state.step))
    parameters = dict(model.named_parameters())
    try:
        stored.check_names({name: p.numel() for name, p in parameters.items()})
    except CheckpointError as error:
        raise CheckpointError(
            f"proxy.checkpoint: {folder}: {error}; set proxy.* to those of {run.config}"
        ) from None
    for name, parameter in parameters.items():
        values = stored.read(MASTER, name, 0, parameter.numel())
        parameter.data.copy_(torch.from_numpy(values).view_as(parameter))
    stored.close()

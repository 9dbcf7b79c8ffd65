"""Which proxy a search trains, and from where it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.errors import CheckpointError
from megatron_fastmix.proxy.huggingface import build_huggingface_proxy, huggingface_flops_per_token
from megatron_fastmix.proxy.megatron_gpt import build_proxy, training_flops_per_token


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
    output_layer.is_output_layer = True
    return model


def flops_per_token(config: ProxyConfig, vocab_size: int, seq_length: int) -> float:
    """Floating-point operations of one token's forward and backward pass."""
    if config.kind == "huggingface":
        return huggingface_flops_per_token(config, seq_length)
    return training_flops_per_token(config, vocab_size, seq_length)


def load_trained(model: torch.nn.Module, run_dir: Path) -> None:
    """Puts the weights of a search's newest checkpoint into `model`.

    Raises `CheckpointError` where there is none, or where its shapes differ.
    """
    from megatron_fastmix.checkpoint import store as checkpoint
    from megatron_fastmix.deepspeed_engine.state import MASTER, StoredParameters

    state = checkpoint.latest(run_dir)
    if state is None:
        raise CheckpointError(f"proxy.checkpoint: {run_dir} holds no checkpoint of a search")
    folder = checkpoint.step_folder(run_dir, state.step)
    stored = StoredParameters(checkpoint.rank_files(run_dir, state.step))
    parameters = dict(model.named_parameters())
    try:
        stored.check_names({name: p.numel() for name, p in parameters.items()})
    except CheckpointError as error:
        raise CheckpointError(
            f"proxy.checkpoint: {folder}: {error}; set proxy.* to those of {run_dir}/config.yaml"
        ) from None
    for name, parameter in parameters.items():
        values = stored.read(MASTER, name, 0, parameter.numel())
        parameter.data.copy_(torch.from_numpy(values).view_as(parameter))
    stored.close()

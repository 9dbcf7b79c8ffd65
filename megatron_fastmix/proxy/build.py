"""Which proxy a search trains, and from where it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.proxy.earlier_search import load_trained
from megatron_fastmix.proxy.huggingface import build_huggingface_proxy
from megatron_fastmix.proxy.megatron_checkpoint import load_megatron_checkpoint
from megatron_fastmix.proxy.megatron_gpt import build_proxy
from megatron_fastmix.proxy.provider import build_provided
from megatron_fastmix.proxy.starting_point import is_megatron_checkpoint


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
        model: Any = build_huggingface_proxy(proxy, seed=seed, dtype=dtype, seq_length=seq_length)
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
            start = Path(proxy.checkpoint)
            if is_megatron_checkpoint(start):
                load_megatron_checkpoint(model, proxy, start)
            else:
                load_trained(model, start)
        output_layer = model.output_layer.weight
        if output_layer is None:
            output_layer = model.shared_embedding_or_output_weight()
    if output_layer is not None:
        output_layer.is_output_layer = True
    return model

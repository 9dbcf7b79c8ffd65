"""The proxy: a Megatron-core GPT or hybrid, and the losses of whichever model trains."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.batch.packing import packed_mask
from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.parallel.device import local_device
from megatron_fastmix.proxy.attention import RotaryEmbeddingAnywhere
from megatron_fastmix.proxy.megatron_cost import padded_vocab_size
from megatron_fastmix.proxy.megatron_layers import gpt_block, transformer_config
from megatron_fastmix.proxy.recompute import recompute_layers


def initialize_parallel_state(tensor_model_parallel_size: int = 1) -> None:
    """Makes Megatron's process groups once. Every rank must call, with torch.distributed up."""
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor_model_parallel_size,
            # Beside those of NCCL they would serve an optimizer of Megatron's alone, and connect
            # over an interface that nobody needs to name on GPUs.
            create_gloo_process_groups=False,
        )


def initialize_world_of_one() -> None:
    """Megatron's datasets and layers ask for ranks and groups even where one process trains."""
    logging.getLogger("megatron").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="megatron")
    if not torch.distributed.is_initialized():
        # Megatron's losses are reduced, in a group of one, too: gloo would have the host wait.
        backend = "cpu:gloo,cuda:nccl" if local_device().type == "cuda" else "gloo"
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    initialize_parallel_state()


def build_proxy(
    config: ProxyConfig,
    *,
    vocab_size: int,
    seq_length: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    tensor_model_parallel_size: int = 1,
) -> Any:
    """A GPT or hybrid with SwiGLU, rotary positions and no dropout, initialised from `seed`.

    Called as `model(tokens, position_ids, None, labels=labels)`, all (B, S), it returns the loss
    per token, (B, S). `initialize_parallel_state` must have run.
    """
    torch.manual_seed(seed)
    transformer = transformer_config(config, dtype, tensor_model_parallel_size)
    arguments: dict[str, Any] = {
        "config": transformer,
        "vocab_size": padded_vocab_size(config, vocab_size, tensor_model_parallel_size),
        "max_sequence_length": seq_length,
        "share_embeddings_and_output_weights": not config.untie_embeddings_and_output_weights,
        "position_embedding_type": "rope",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 0.19 announces HybridModel
        if config.hybrid_layer_pattern is not None:
            from megatron_fastmix.proxy.hybrid import build_hybrid  # takes seconds

            model = build_hybrid(config, arguments)
        else:
            model = GPTModel(transformer_layer_spec=gpt_block(config), **arguments)
    model.rotary_pos_emb = RotaryEmbeddingAnywhere(
        config.head_size, config.rotary_percent, config.rotary_base
    )
    for parameter in model.parameters():
        # Norms are made in fp32, and with torch up to 2.6 so would be what they give.
        parameter.data = parameter.data.to(dtype)
    if config.recompute_granularity == "full":
        recompute_layers(model.decoder.layers)
    return model


def token_losses(
    model: torch.nn.Module,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy per token, (B, S), of `tokens` and `labels`, (B, S).

    `attention_mask`, bool (B, 1, S, S), is true where a token must not attend; None is causal.
    `positions`, (B, S), are needed where a row holds several samples.
    """
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return model(tokens, positions, attention_mask, labels=labels).float()


def batch_token_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy per token of a batch, (R, S) float64, 0 where the token is not in the loss.

    In float64 because a finite difference must not drown in the rounding of the sums over tokens.
    """
    mask = None if batch.blocks is None else packed_mask(batch.blocks)
    losses = token_losses(model, batch.tokens, batch.labels, mask, batch.positions)
    return losses.double() * batch.loss_mask


def mean_by_sample(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    """Sums of `values` (R, S) over each sample's tokens, over the number that divides its loss,
    (B,); a sample without a token in the loss gives 0."""
    if batch.segment is None:
        return values.sum(dim=1) / batch.loss_mask.sum(dim=1).clamp_min(1)
    assert batch.tokens_per_sample is not None
    # Padding, of segment −1, has no loss: whichever sample it is added to stays the same.
    sums = values.new_zeros(batch.num_samples).index_add(
        0, batch.segment.clamp_min(0).flatten(), values.flatten()
    )
    return sums / batch.tokens_per_sample


def batch_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Per-sample losses of a batch, (B,) float64, in whichever rows its samples lie."""
    return mean_by_sample(batch, batch_token_losses(model, batch))

"""The layers of a Megatron-core proxy: which module each part is, and their configuration.

Every norm is named, so that the model is the same whether apex, Transformer Engine or neither is
installed: Megatron's own defaults would take theirs, and apex's has no RMSNorm.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.proxy.attention import RouterAnywhere, ScaledDotProductAttention


def transformer_config(
    config: ProxyConfig, dtype: torch.dtype, tensor_model_parallel_size: int
) -> TransformerConfig:
    """Megatron-core's configuration of the layers, without dropout and fusions."""
    experts: dict[str, Any] = {}
    if config.num_experts is not None:
        experts = {
            "num_moe_experts": config.num_experts,
            "moe_router_topk": config.moe_router_topk,
            # The softmax of one expert's logit alone is 1, and the router would learn nothing.
            "moe_router_pre_softmax": config.moe_router_topk == 1,
            "moe_ffn_hidden_size": config.expert_size,
            "moe_token_dispatcher_type": "allgather",
            # An auxiliary loss would be a function of the whole micro-batch, not of a sample.
            "moe_router_load_balancing_type": "none",
            "moe_router_dtype": "fp32",
        }
    pattern = config.hybrid_layer_pattern
    return TransformerConfig(
        num_layers=config.num_layers if pattern is None else len(pattern),
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_query_groups,
        kv_channels=config.kv_channels,
        ffn_hidden_size=config.feed_forward_size,
        init_method_std=config.init_method_std,
        normalization=config.normalization,
        qk_layernorm=config.qk_layernorm,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        # The search's forward passes must be functions of θ and the batch alone.
        hidden_dropout=0.0,
        attention_dropout=0.0,
        # Also makes the initial weights the same at every tensor-parallel size.
        use_cpu_initialization=True,
        tensor_model_parallel_size=tensor_model_parallel_size,
        params_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        **experts,
    )


def gpt_block(config: ProxyConfig) -> TransformerBlockSubmodules:
    """A GPT's layers and its final norm."""
    spec = get_gpt_layer_local_spec(
        num_experts=config.num_experts,
        qk_layernorm=config.qk_layernorm,
        normalization=config.normalization,
    )
    parts = spec.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = WrappedTorchNorm
    runs_anywhere(parts.self_attention.submodules, config.qk_layernorm)
    if config.num_experts is not None:
        # A ModuleSpec up to megatron-core 0.18, a partial of the layer since.
        experts = getattr(parts.mlp, "submodules", None) or parts.mlp.keywords["submodules"]
        experts.router = RouterAnywhere
    return TransformerBlockSubmodules(
        layer_specs=[spec] * config.num_layers, layer_norm=WrappedTorchNorm
    )


def runs_anywhere(attention: Any, qk_layernorm: bool) -> None:
    """Has the submodules of an attention layer run on any device."""
    attention.core_attention = ScaledDotProductAttention
    if qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = WrappedTorchNorm

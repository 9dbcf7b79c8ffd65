"""Parameters and floating-point operations of a Megatron-core proxy, by arithmetic alone: torch is
not imported."""

from __future__ import annotations

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.errors import ConfigError


def padded_vocab_size(
    config: ProxyConfig, vocab_size: int, tensor_model_parallel_size: int = 1
) -> int:
    """Rows of the embedding: `vocab_size` rounded up as Megatron does."""
    multiple = config.make_vocab_size_divisible_by * tensor_model_parallel_size
    return -(-vocab_size // multiple) * multiple


def megatron_parameters(
    config: ProxyConfig, vocab_size: int, tensor_model_parallel_size: int = 1
) -> int:
    """Parameters of `build_proxy`'s model."""
    hidden = config.hidden_size
    norm = hidden * (2 if config.normalization == "LayerNorm" else 1)
    head_norms = 2 * config.head_size * (2 if config.normalization == "LayerNorm" else 1)
    total = norm
    for part in layer_parts(config):
        total += norm
        if part == "*":
            total += _attention(config) + (head_norms if config.qk_layernorm else 0)
        elif part == "E":
            assert config.num_experts is not None
            total += config.num_experts * (_expert(config) + hidden)
        else:
            total += _feed_forward(config)
    embeddings = 1 + config.untie_embeddings_and_output_weights
    rows = padded_vocab_size(config, vocab_size, tensor_model_parallel_size)
    return total + embeddings * rows * hidden


def megatron_flops_per_token(config: ProxyConfig, vocab_size: int, seq_length: int) -> float:
    """Floating-point operations of one token's forward and backward pass.

    3 × forward; forward = 2 × weights of the matrix products + 2·S·(heads' width) per layer for
    causal attention's two products (half of 4·S·width). The embedding look-up costs nothing, and a
    token meets `moe_router_topk` experts.
    """
    hidden = config.hidden_size
    weights, products = hidden * padded_vocab_size(config, vocab_size), 0
    for part in layer_parts(config):
        if part == "*":
            weights += _attention(config)
            products += 2 * seq_length * config.num_attention_heads * config.head_size
        elif part == "E":
            assert config.num_experts is not None
            weights += config.moe_router_topk * _expert(config) + config.num_experts * hidden
        else:
            weights += _feed_forward(config)
    return 3.0 * (2 * weights + products)


def layer_parts(config: ProxyConfig) -> str:
    """The residual parts one after the other, in the letters of `hybrid_layer_pattern`."""
    if config.hybrid_layer_pattern is None:
        return ("*-" if config.num_experts is None else "*E") * config.num_layers
    if "M" in config.hybrid_layer_pattern:
        raise ConfigError(
            f"proxy.hybrid_layer_pattern: found {config.hybrid_layer_pattern}; the cost of Mamba "
            "layers is not known here: plan a pattern without M of the same width and depth"
        )
    return config.hybrid_layer_pattern


def _attention(config: ProxyConfig) -> int:
    """Weights of queries, keys, values and output."""
    heads = 2 * config.num_attention_heads + 2 * config.query_groups
    return config.hidden_size * config.head_size * heads


def _feed_forward(config: ProxyConfig) -> int:
    return 3 * config.hidden_size * config.feed_forward_size


def _expert(config: ProxyConfig) -> int:
    return 3 * config.hidden_size * config.expert_size

"""What a search costs: every floating-point operation is counted here.

A backward pass counts as two forward passes.
"""

from __future__ import annotations

from typing import Any

from megatron_fastmix.config import ProxyConfig, SearchConfig
from megatron_fastmix.proxy.huggingface import count_parameters, on_paper
from megatron_fastmix.proxy.megatron_cost import megatron_flops_per_token, megatron_parameters
from megatron_fastmix.proxy.provider import provided_parameters


def proxy_parameters(config: SearchConfig, vocab_size: int) -> tuple[int, int]:
    """All parameters of the proxy, and those that are trained."""
    if config.proxy.kind == "huggingface":
        return count_parameters(config.proxy)
    if config.proxy.kind == "provider":
        return provided_parameters(config.proxy, vocab_size, config.data.seq_length)
    count = megatron_parameters(config.proxy, vocab_size, config.engine.tensor_model_parallel_size)
    return count, count


def objective_samples(config: SearchConfig) -> list[int]:
    """Samples of each gradient v of an outer step, every one of which has a probe of its own."""
    samples = [config.hypergradient.target_samples] * len(config.targets)
    if config.objective.train_loss_weight:
        samples.append(_objective_train_samples(config))
    return samples if config.estimates_per_target else [sum(samples)]


def _objective_train_samples(config: SearchConfig) -> int:
    """Samples of the sources in an outer step's objective."""
    if not config.objective.train_loss_weight:
        return 0
    per_source = config.hypergradient.probe_samples_per_source
    return config.hypergradient.probe_samples or per_source * len(config.sources)


def separate_probe_samples(config: SearchConfig) -> int:
    """Samples of an outer step that are probed apart from training, about: where training batches
    are the probe, those of sources that even draws leave out."""
    if config.hypergradient.probe_samples is not None:
        return config.hypergradient.probe_samples
    sources = len(config.sources)
    if config.hypergradient.probe == "training":
        sources = max(0, sources - config.training.global_batch_size)
    return config.hypergradient.probe_samples_per_source * sources


def outer_step_tokens(config: SearchConfig, *, source_tokens: float, target_tokens: float) -> float:
    """Tokens of an outer step's forward passes, where a sample of the sources has `source_tokens`
    and one of the targets `target_tokens`; a backward pass counts as two forward passes."""
    hypergradient, vectors = config.hypergradient, len(objective_samples(config))
    objective = hypergradient.target_samples * len(config.targets) * target_tokens
    objective += _objective_train_samples(config) * source_tokens
    probe = separate_probe_samples(config) * source_tokens
    if hypergradient.estimator == "one_pass":
        # Forward, backward through the activations alone, and each v's local products: one each.
        tokens = 3.0 * objective + (2.0 + vectors) * probe
        if hypergradient.probe == "training":
            # Of these samples the training itself makes the passes.
            tokens += vectors * config.training.global_batch_size * source_tokens
        return tokens
    if hypergradient.estimator == "finite_difference":
        return 3.0 * objective + 2.0 * probe * vectors
    return 3.0 * objective + 3.0 * probe * vectors * len(config.sources)


def flops_per_token(
    config: ProxyConfig, vocab_size: int, seq_length: int, *, parameters: int | None = None
) -> float:
    """Floating-point operations of one token's forward and backward pass.

    `parameters` are those of the model where it is built already; a provider's is built once more
    to count them where they are not given.
    """
    if config.kind == "huggingface":
        return _huggingface_flops_per_token(config, seq_length)
    if config.kind == "provider":
        # What its attention costs is not known, nor which weights are an embedding alone.
        return 6.0 * (parameters or provided_parameters(config, vocab_size, seq_length)[0])
    return megatron_flops_per_token(config, vocab_size, seq_length)


def _huggingface_flops_per_token(config: ProxyConfig, seq_length: int) -> float:
    """Floating-point operations of one token's forward and backward pass, about.

    3 × forward; forward = 2 × parameters that a token meets, without the input embedding, + 2·S·
    (heads' width) per layer for causal attention's two products. With LoRA this is an upper bound:
    frozen weights take no gradient.
    """
    whole, empty = on_paper(config)
    model = whole.get_text_config()
    weights = sum(
        parameter.numel() * (_expert_share(model) if ".experts." in name else 1)
        for name, parameter in empty.named_parameters()
    )
    if not getattr(whole, "tie_word_embeddings", True):
        weights -= empty.get_input_embeddings().weight.numel()
    attention = model.num_hidden_layers * 2 * seq_length * _attention_width(model)
    return 3.0 * (2 * weights + attention)


def _attention_width(model: Any) -> float:
    """Of a layer's queries and values, all heads together; the residual stream's where a model has
    no heads, or not the same in every layer."""
    try:
        heads = model.num_attention_heads
        if getattr(model, "qk_rope_head_dim", None):  # latent attention, where head_dim is a part
            parts = model.qk_nope_head_dim + model.qk_rope_head_dim + model.v_head_dim
            return float(heads * parts / 2)
        return float(heads * (getattr(model, "head_dim", None) or model.hidden_size // heads))
    except Exception:  # transformers has errors of its own for what differs between layers
        return float(model.hidden_size)


def _expert_share(model: Any) -> float:
    """Of a layer's experts, the share that a token is sent to; 1 where it is not known."""
    chosen = _first(model, "num_experts_per_tok", "top_k_experts", "moe_topk")
    of = _first(model, "num_local_experts", "num_experts", "n_routed_experts")
    return chosen / of if chosen and of else 1.0


def _first(model: Any, *names: str) -> int:
    """The first of these sizes that the configuration has; 0 without."""
    sizes = (getattr(model, name, None) for name in names)
    return next((size for size in sizes if isinstance(size, int) and size > 0), 0)

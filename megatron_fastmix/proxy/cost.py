"""What a search costs: every floating-point operation is counted here.

A backward pass counts as two forward passes.
"""

from __future__ import annotations

from megatron_fastmix.config import ProxyConfig, SearchConfig
from megatron_fastmix.proxy.huggingface import count_parameters, on_paper
from megatron_fastmix.proxy.megatron_cost import megatron_flops_per_token, megatron_parameters
from megatron_fastmix.proxy.provider import provided_parameters


def training_flops(
    config: SearchConfig,
    *,
    tokens: int,
    outer_steps: int,
    tokens_per_sample: float,
    vocab_size: int,
) -> float:
    """Floating-point operations of optimizer steps on `tokens` and of `outer_steps` steps of the
    mixture, whose samples have `tokens_per_sample`."""
    of_outer_steps = outer_steps * outer_step_forward_passes(config) / 3.0 * tokens_per_sample
    per_token = flops_per_token(config.proxy, vocab_size, config.data.seq_length)
    return (tokens + of_outer_steps) * per_token


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
        samples.append(
            config.hypergradient.probe_samples
            or config.hypergradient.probe_samples_per_source * len(config.sources)
        )
    return samples if config.estimates_per_target else [sum(samples)]


def separate_probe_samples(config: SearchConfig) -> int:
    """Samples of an outer step that are probed apart from training, about: where training batches
    are the probe, those of sources that even draws leave out."""
    if config.hypergradient.probe_samples is not None:
        return config.hypergradient.probe_samples
    sources = len(config.sources)
    if config.hypergradient.probe == "training":
        sources = max(0, sources - config.training.global_batch_size)
    return config.hypergradient.probe_samples_per_source * sources


def outer_step_forward_passes(config: SearchConfig) -> float:
    """Cost of one outer step in forward passes of one sample; a backward pass counts as two."""
    hypergradient, count = config.hypergradient, len(config.sources)
    objective = objective_samples(config)
    probe = separate_probe_samples(config) * len(objective)
    if hypergradient.estimator == "one_pass":
        # Forward, backward through the activations alone, and each v's local products: one each.
        passes = 3.0 * sum(objective) + (2.0 / len(objective) + 1.0) * probe
        if hypergradient.probe == "training":
            # Of these samples the training itself makes the passes.
            passes += len(objective) * config.training.global_batch_size
        return passes
    if hypergradient.estimator == "finite_difference":
        return 3.0 * sum(objective) + 2.0 * probe
    return 3.0 * sum(objective) + 3.0 * probe * count


def flops_per_token(config: ProxyConfig, vocab_size: int, seq_length: int) -> float:
    """Floating-point operations of one token's forward and backward pass."""
    if config.kind == "huggingface":
        return _huggingface_flops_per_token(config, seq_length)
    if config.kind == "provider":
        # What its attention costs is not known, nor which weights are an embedding alone.
        return 6.0 * provided_parameters(config, vocab_size, seq_length)[0]
    return megatron_flops_per_token(config, vocab_size, seq_length)


def _huggingface_flops_per_token(config: ProxyConfig, seq_length: int) -> float:
    """Floating-point operations of one token's forward and backward pass, about.

    3 × forward; forward = 2 × parameters but the input embedding, + 2·S·hidden per layer for causal
    attention's two products. With LoRA this is an upper bound: frozen weights take no gradient.
    """
    model, empty = on_paper(config)
    weights = sum(parameter.numel() for parameter in empty.parameters())
    if not model.tie_word_embeddings:
        weights -= empty.get_input_embeddings().weight.numel()
    attention = model.num_hidden_layers * 2 * seq_length * model.hidden_size
    return 3.0 * (2 * weights + attention)

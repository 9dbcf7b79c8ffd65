"""A proxy that a function of the user's builds."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

import torch

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.errors import ConfigError


def load_provider(name: str) -> Callable[..., torch.nn.Module]:
    """The function `module:function`; the module may lie in the current directory. Raises
    `ConfigError` where there is none."""
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it, in the console command, too
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"proxy.provider: cannot import {module_name}: {error}; set PYTHONPATH to the folder "
            "that holds it, on every host"
        ) from None
    provider = getattr(module, function_name, None)
    if not callable(provider):
        raise ConfigError(
            f"proxy.provider: {module.__file__} has no function {function_name}; write "
            "module:function"
        )
    return provider


def build_provided(
    config: ProxyConfig,
    *,
    vocab_size: int,
    seq_length: int,
    seed: int,
    dtype: torch.dtype,
    tensor_model_parallel_size: int,
) -> torch.nn.Module:
    """What the provider builds from the same arguments, after `torch.manual_seed(seed)`.

    Every rank must get the same weights. The model is called as `model(tokens, positions,
    attention_mask, labels=labels)`: (R, S) int64 thrice, and bool (R, 1, S, S), true where a token
    must not attend, or None for causal. It returns the cross-entropy per token, (R, S), without
    dropout and without a term that ties samples together. Megatron-core's GPTModel is such a model.
    A module `output_layer` with a weight, if it has one, is what the estimator `last_layer` takes.
    """
    assert config.provider is not None
    torch.manual_seed(seed)
    model = load_provider(config.provider)(
        config,
        vocab_size=vocab_size,
        seq_length=seq_length,
        dtype=dtype,
        tensor_model_parallel_size=tensor_model_parallel_size,
    )
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"proxy.provider: {config.provider} returned a {type(model).__name__}; return the "
            "torch.nn.Module"
        )
    return model


def provided_parameters(config: ProxyConfig, vocab_size: int, seq_length: int) -> tuple[int, int]:
    """All parameters of the provider's model and those that are trained, from a model without
    memory."""
    with torch.device("meta"):
        model = build_provided(
            config,
            vocab_size=vocab_size,
            seq_length=seq_length,
            seed=0,
            dtype=torch.float32,
            tensor_model_parallel_size=1,
        )
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in counts), sum(n for n, trained in counts if trained)

"""A Hugging Face decoder-only model as the proxy, to learn fine-tuning mixtures with."""

from __future__ import annotations

from typing import Any

import torch

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.errors import ConfigError


class HuggingFaceProxy(torch.nn.Module):
    """A causal language model behind the interface of Megatron-core's GPT."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Cross-entropy per token, (R, S), of `tokens` and `labels`, (R, S); without labels the
        logits, (R, S, vocabulary).

        `attention_mask`, bool (R, 1, S, S), is true where a token must not attend; None is causal.
        """
        allowed = None if attention_mask is None else ~attention_mask
        logits = self.model(
            input_ids=tokens, position_ids=positions, attention_mask=allowed, use_cache=False
        ).logits
        if labels is None:
            return logits
        return torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels, reduction="none"
        )


def build_huggingface_proxy(
    config: ProxyConfig, *, seed: int, dtype: torch.dtype = torch.float32
) -> HuggingFaceProxy:
    """The pretrained model at `config.path`, without dropout; with LoRA adapters, which alone are
    trained, where `config.lora_rank` asks for them."""
    transformers = import_extra("transformers")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        config.path, dtype=dtype, attn_implementation="sdpa"
    )
    # The search's forward passes must be functions of θ and the batch alone.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for key in vars(model.config):
        if "dropout" in key or key.endswith("pdrop"):
            setattr(model.config, key, 0.0)
    if config.lora_rank:
        model = _with_adapters(model, config)
    return HuggingFaceProxy(model)


def _with_adapters(model: Any, config: ProxyConfig) -> Any:
    peft = import_extra("peft")
    adapters = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, adapters)


def import_extra(name: str) -> Any:
    """Imports a package of the extra `huggingface`. Raises `ConfigError` without it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"proxy.kind huggingface needs the package {name}: "
            "pip install 'megatron-fastmix[huggingface]'"
        ) from None


def count_parameters(config: ProxyConfig) -> tuple[int, int]:
    """All parameters of the model at `proxy.path`, and those that are trained: with LoRA, those of
    the adapters."""
    _, empty = on_paper(config)
    if config.lora_rank:
        with torch.device("meta"):
            empty = _with_adapters(empty, config)
    counts = [(p.numel(), p.requires_grad) for p in empty.parameters()]
    return sum(n for n, _ in counts), sum(n for n, trained in counts if trained)


def on_paper(config: ProxyConfig) -> tuple[Any, Any]:
    """The model's configuration, and the model without memory for its weights."""
    transformers = import_extra("transformers")
    model = transformers.AutoConfig.from_pretrained(config.path)
    with torch.device("meta"):
        return model, transformers.AutoModelForCausalLM.from_config(model)

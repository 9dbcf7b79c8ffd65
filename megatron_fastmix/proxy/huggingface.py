"""A Hugging Face decoder-only model as the proxy, to learn fine-tuning mixtures with."""

from __future__ import annotations

import functools
from typing import Any

import torch

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.proxy.model_files import import_extra, load_model_config, not_loadable
from megatron_fastmix.proxy.packed_rows import find_way
from megatron_fastmix.proxy.recompute import recompute_layers
from megatron_fastmix.proxy.rope import settle_frequencies
from megatron_fastmix.proxy.token_cross_entropy import token_cross_entropy


class HuggingFaceProxy(torch.nn.Module):
    """A causal language model behind the interface of Megatron-core's GPT.

    It stays in eval mode: what a model does in training alone (dropout, layers left out, noise on
    a router) would make its losses no function of θ and the batch.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval()
        self.rows = find_way(model, _architecture(model))

    @property
    def samples_run_alone(self) -> bool:
        """Whether the model gets a row for each sample where a row holds several."""
        return self.rows.way == "rows"

    def train(self, mode: bool = True) -> HuggingFaceProxy:
        """Leaves the model in eval mode, whatever an engine asks for; gradients flow all the
        same."""
        return super().train(False)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Cross-entropy per token, (R, S), of `tokens` and `labels`, (R, S); without labels the
        logits, (R, S, vocabulary).

        `attention_mask`, bool (R, 1, S, S), is true where a token must not attend, and None where
        no row holds two samples; `positions`, (R, S), begin anew in every sample.
        """
        assert not self.model.training
        logits = self.rows.logits(tokens, positions, attention_mask)
        if labels is None:
            return logits
        return token_cross_entropy(logits, labels)


def build_huggingface_proxy(
    config: ProxyConfig,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    seq_length: int | None = None,
) -> HuggingFaceProxy:
    """The pretrained model at `config.path`, in eval mode; with LoRA adapters, which alone are
    trained, where `config.lora_rank` asks for them. Rotary frequencies that follow the length are
    those of `seq_length` tokens; default: of the model's own positions."""
    transformers = import_extra("transformers")
    torch.manual_seed(seed)
    model = _load(transformers, config.path, dtype)
    text = model.config.get_text_config()
    settle_frequencies(
        model, seq_length or int(getattr(text, "max_position_embeddings", None) or 1)
    )
    if config.recompute_granularity == "full":
        recompute_layers(_layers(model))
    if config.lora_rank:
        model = _with_adapters(model, config)
    return HuggingFaceProxy(model)


def _load(transformers: Any, path: str | None, dtype: torch.dtype) -> Any:
    """The model, with the attention that it has. Raises `ConfigError`, also where its files are
    without a part of its weights, which transformers would draw at random."""
    load = functools.partial(
        transformers.AutoModelForCausalLM.from_pretrained,
        path,
        output_loading_info=True,
        **in_precision(transformers, dtype),
    )
    try:
        try:
            model, found = load(attn_implementation="sdpa")
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, found = load(attn_implementation="eager")
    except Exception as error:  # each class of models checks in a way of its own
        raise not_loadable(path, error) from None
    missing = set(found["missing_keys"])
    random = [name for name, _ in model.named_parameters() if name in missing]
    if random:
        raise ConfigError(
            f"proxy.path: the files of {path} have no values for {len(random)} of the model's "
            f"weights, such as {random[0]}, which would be random; save the model whole, with its "
            "head, adapters merged, and under the names that transformers gives its weights"
        )
    return model


def in_precision(transformers: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument that has `transformers` make a model in `dtype`; up to 4.55 it has another
    name."""
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return {"dtype" if version >= (4, 56) else "torch_dtype": dtype}


def _architecture(model: Any) -> Any:
    """The architecture's own model, without adapters around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _layers(model: Any) -> list[torch.nn.Module]:
    """The model's layers: the longest list of modules that is inside no other."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists:
        raise ConfigError(
            "proxy.recompute_granularity: this model keeps its layers in no list; leave the key out"
        )
    sizes = [sum(p.numel() for p in found.parameters()) for found in lists]
    return list(lists[sizes.index(max(sizes))])


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


def count_parameters(config: ProxyConfig) -> tuple[int, int]:
    """All parameters of the model at `proxy.path`, and those that are trained: with LoRA, those of
    the adapters."""
    counts = [(p.numel(), p.requires_grad) for p in without_weights(config).parameters()]
    return sum(n for n, _ in counts), sum(n for n, trained in counts if trained)


def without_weights(config: ProxyConfig) -> torch.nn.Module:
    """The model that a search trains, adapters included, without memory for its weights."""
    _, empty = on_paper(config)
    if config.lora_rank:
        with torch.device("meta"):
            empty = _with_adapters(empty, config)
    return empty


def on_paper(config: ProxyConfig) -> tuple[Any, Any]:
    """The model's configuration, and the model without memory for its weights."""
    transformers = import_extra("transformers")
    assert config.path is not None
    model = load_model_config(config.path)
    try:
        with torch.device("meta"):
            return model, transformers.AutoModelForCausalLM.from_config(model)
    except Exception as error:
        raise not_loadable(config.path, error) from None

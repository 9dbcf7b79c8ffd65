"""Megatron-core's HybridModel, where the installed version has it."""

from __future__ import annotations

import dataclasses
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.proxy.megatron_layers import gpt_block

_ONE_AT_A_TIME = threading.Lock()


def build_hybrid(config: ProxyConfig, arguments: dict[str, Any]) -> Any:
    """A HybridModel of the layers in `config.hybrid_layer_pattern`; `arguments` are those of a GPT.

    Raises `ConfigError` where Megatron-core has none, or a layer lacks its package.
    """
    try:
        block = importlib.import_module("megatron.core.models.hybrid.hybrid_block")
        model = importlib.import_module("megatron.core.models.hybrid.hybrid_model")
    except ImportError as error:
        raise ConfigError(
            f"proxy.hybrid_layer_pattern: this Megatron-core has no HybridModel ({error}); install "
            "megatron-core 0.18 or newer, or leave the key out for a GPT"
        ) from None
    try:
        with _final_norm_of_torch(block):
            return model.HybridModel(
                hybrid_stack_spec=_stack(config, block),
                hybrid_layer_pattern=config.hybrid_layer_pattern,
                **arguments,
            )
    except ImportError as error:
        raise ConfigError(f"proxy.hybrid_layer_pattern: a layer cannot be built: {error}") from None


@contextmanager
def _final_norm_of_torch(block: Any) -> Iterator[None]:
    """The stack names Transformer Engine's norm for its end and takes no other."""
    with _ONE_AT_A_TIME:
        original, block.TENorm = block.TENorm, WrappedTorchNorm
        try:
            yield
        finally:
            block.TENorm = original


def _stack(config: ProxyConfig, block: Any) -> ModuleSpec:
    dense = dataclasses.replace(
        config, hybrid_layer_pattern=None, num_experts=None, moe_ffn_hidden_size=None
    )
    parts = gpt_block(dense).layer_specs[0].submodules
    experts = gpt_block(config).layer_specs[0].submodules.mlp
    assert config.hybrid_layer_pattern is not None
    layers = block.HybridStackSubmodules(
        **({"mamba_layer": _mamba_layer()} if "M" in config.hybrid_layer_pattern else {}),
        attention_layer=ModuleSpec(
            module=TransformerLayer,
            submodules=TransformerLayerSubmodules(
                input_layernorm=WrappedTorchNorm,
                self_attention=parts.self_attention,
                self_attn_bda=get_bias_dropout_add,
            ),
        ),
        mlp_layer=ModuleSpec(module=MLPLayer, submodules=_feed_forward(parts.mlp)),
        moe_layer=ModuleSpec(module=TransformerLayer, submodules=_feed_forward(experts)),
    )
    return ModuleSpec(module=block.HybridStack, submodules=layers)


def _feed_forward(mlp: Any) -> TransformerLayerSubmodules:
    return TransformerLayerSubmodules(
        pre_mlp_layernorm=WrappedTorchNorm, mlp=mlp, mlp_bda=get_bias_dropout_add
    )


def _mamba_layer() -> ModuleSpec:
    from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
    from megatron.core.ssm.mamba_mixer import MambaMixer, MambaMixerSubmodules  # needs triton
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

    projections = MambaMixerSubmodules(in_proj=ColumnParallelLinear, out_proj=RowParallelLinear)
    return ModuleSpec(
        module=MambaLayer,
        submodules=MambaLayerSubmodules(
            norm=WrappedTorchNorm,
            mixer=ModuleSpec(module=MambaMixer, submodules=projections),
            mamba_bda=get_bias_dropout_add,
        ),
    )

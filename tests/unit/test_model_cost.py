"""FLOPs of a Hugging Face model against those that torch counts in a real pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.proxy.cost import _attention_width, _expert_share, flops_per_token

transformers = pytest.importorskip("transformers")

LENGTH = 64
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen2", {"tie_word_embeddings": False}),
        ("Mistral", {"head_dim": 128}),
        ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
        ("Qwen2Moe", {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 64}),
    ],
)
def test_flops_are_those_of_a_pass(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(**SIZES, **changes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    model.save_pretrained(tmp_path)
    tokens = torch.randint(0, config.vocab_size, (2, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False).logits.sum().backward()
    # Without a mask in its products, eager attention also multiplies what it then throws away.
    width = config.num_attention_heads * changes.get("head_dim", 16)
    thrown_away = 3 * 2 * LENGTH * width * config.num_hidden_layers
    counted = counter.get_total_flops() / tokens.numel() - thrown_away
    said = flops_per_token(ProxyConfig(kind="huggingface", path=str(tmp_path)), 512, LENGTH)
    # Norms and the like are parameters without a matrix product.
    assert said == pytest.approx(counted, rel=0.01)


def test_the_sizes_of_a_nested_configuration_are_found(tmp_path: Path) -> None:
    nested = pytest.importorskip("transformers.models.gemma3")
    text = nested.Gemma3TextConfig(**SIZES, head_dim=32)
    config = nested.Gemma3Config(text_config=text.to_dict())
    config.architectures = ["Gemma3ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    assert flops_per_token(ProxyConfig(kind="huggingface", path=str(tmp_path)), 512, LENGTH) > 0


def test_a_model_without_heads_has_a_cost(tmp_path: Path) -> None:
    """What has no attention, and latent attention, whose head_dim is a part of a head."""
    config = transformers.MambaConfig(vocab_size=512, hidden_size=64, num_hidden_layers=2)
    config.architectures = ["MambaForCausalLM"]
    config.save_pretrained(tmp_path)
    assert flops_per_token(ProxyConfig(kind="huggingface", path=str(tmp_path)), 512, LENGTH) > 0
    latent = {"num_attention_heads": 4, "head_dim": 8, "hidden_size": 64}
    parts = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    assert _attention_width(SimpleNamespace(**latent, **parts)) == 4 * (24 + 16) / 2
    assert _expert_share(SimpleNamespace(num_experts=8, top_k_experts=2)) == 0.25
    assert _expert_share(SimpleNamespace(num_experts=8, num_experts_per_tok=None)) == 1

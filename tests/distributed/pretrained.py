"""Searches that fine-tune a tiny pretrained model of a family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SOURCES


def make_model(folder: Path, family: str, **changes: Any) -> Path:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
    }
    torch.manual_seed(5)
    config = getattr(transformers, f"{family}Config")(**sizes | changes)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    return folder


EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}
MIXTRAL = ("Mixtral", EXPERTS | {"num_local_experts": 4})
QWEN3_MOE = (
    "Qwen3Moe",
    EXPERTS | {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
)


def fine_tuning_values(
    values: dict, corpora: Path, folder: Path, name: str, settings: dict[str, Any]
) -> dict:
    """`values` with the family `name` of these settings, on answer-only corpora, and a mixture that
    stays where it is."""
    values["sources"] = [{"name": n, "path": str(corpora / n)} for n in SOURCES]
    values["targets"] = [{"name": "target", "path": str(corpora / "target")}]
    values["proxy"] = {
        "kind": "huggingface",
        "path": str(make_model(folder / name, name, **settings)),
    }
    values["mixture"]["lr"] = 0
    return values

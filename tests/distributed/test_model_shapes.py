"""Proxies of other shapes than the demo's: sharding and tensor parallelism change no product."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.lab.forked_ranks import run_ranks
from tests.cases import slow
from tests.distributed.searches import load, products_of, run_search
from tests.distributed.test_pretrained import make_model

pytestmark = pytest.mark.slow

GROUPED: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "qk_layernorm": True,
    "kv_channels": 16,
    "rotary_percent": 0.5,
    "normalization": "LayerNorm",
    "untie_embeddings_and_output_weights": True,
}
HYBRID = pytest.param(
    {"hybrid_layer_pattern": "*E*-", "num_experts": 4, "recompute_granularity": "full"},
    3,
    1,
    marks=pytest.mark.skipif(
        importlib.util.find_spec("megatron.core.models.hybrid") is None,
        reason="this Megatron-core has no HybridModel",
    ),
)
EXPERTS = {"num_experts": 4, "moe_ffn_hidden_size": 32}


def check_same_products(values: dict, tmp_path: Path, ranks: int, **changes: Any) -> None:
    values["mixture"]["lr"] = 0
    same = {"hypergradient.estimator": "per_source", "training.train_iters": 4}
    plain = {"engine.zero_stage": 0, "run_dir": tmp_path / "plain"}
    reference = load(values, **same, **plain, **{"proxy.recompute_granularity": "null"})
    run_ranks(1, run_search, reference)
    config = load(values, **(same | changes))
    run_ranks(ranks, run_search, config)
    expected, found = products_of(reference.run_dir), products_of(config.run_dir)
    scale = np.abs(expected).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found / scale, expected / scale, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "stage", "split"),
    [
        ({**GROUPED, "recompute_granularity": "full"}, 3, 1),
        slow({**GROUPED, "qk_layernorm": False}, 1, 2),
        ({**EXPERTS, "recompute_granularity": "full"}, 3, 1),
        slow(EXPERTS, 2, 1),
        HYBRID,
    ],
)
def test_megatron_shapes(
    search_values: dict, tmp_path: Path, shape: dict[str, Any], stage: int, split: int
) -> None:
    search_values["proxy"] |= shape
    changes = {"engine.zero_stage": stage, "engine.tensor_model_parallel_size": split}
    check_same_products(search_values, tmp_path, 2, **changes)


def test_recomputation_in_a_hugging_face_model_under_zero_3(
    search_values: dict, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    search_values["proxy"] = {
        "kind": "huggingface",
        "path": str(make_model(tmp_path / "llama", "llama")),
        "recompute_granularity": "full",
    }
    check_same_products(search_values, tmp_path, 2, **{"engine.zero_stage": 3})


@pytest.mark.parametrize(("shape", "stage"), [(GROUPED, 3), slow(EXPERTS, 2)])
def test_one_pass_takes_recomputed_layers(
    search_values: dict, tmp_path: Path, shape: dict[str, Any], stage: int
) -> None:
    search_values["proxy"] |= shape | {"recompute_granularity": "full"}
    changes = {"engine.zero_stage": stage, "hypergradient.estimator": "one_pass"}
    check_same_products(search_values, tmp_path, 2, **changes)

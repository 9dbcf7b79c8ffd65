"""Packed rows in Hugging Face models: a sample's loss is the one that it has alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.batch.packing import collate_rows, positions_in_samples
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.proxy.huggingface import HuggingFaceProxy, _layers
from megatron_fastmix.proxy.megatron_gpt import batch_losses
from megatron_fastmix.proxy.recompute import recompute_layers

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 8}
# With earlier ones fewer models follow positions or a mask, and which is a matter of the version.
WAYS_ARE_KNOWN = int(transformers.__version__.split(".")[0]) >= 5
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("positions", {}),
    "llama": ("positions", {}),
    "qwen2": ("positions", {}),
    "mistral": ("positions", WINDOW),
    "gemma2": ("positions", {**WINDOW, "head_dim": 8}),
    "gemma3_text": (
        "positions",
        {**WINDOW, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "qwen3_moe": (
        "positions",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "opt": ("mask", {}),
    "mpt": ("mask", {}),
    "bloom": ("rows", {}),
    "gpt_neo": (
        "rows",
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "mamba": ("rows", {"state_size": 4}),
}


def random_model(family: str, **more: Any) -> Any:
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    sizes = SIZES | FAMILIES.get(family, ("", {}))[1] | more
    settings = transformers.AutoConfig.for_model(family, **sizes)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # so large that a token of another sample shows
            parameter.data.normal_(0, 0.3)
    return model


def sample(length: int) -> dict[str, Any]:
    tokens = torch.randint(3, SIZES["vocab_size"], (length + 1,))
    mask = (torch.arange(length) >= length // 3).float()
    return {"tokens": tokens[:-1], "labels": tokens[1:], "loss_mask": mask}


def losses(
    proxy: HuggingFaceProxy, samples: list[dict[str, Any]], row: int, packing: bool
) -> torch.Tensor:
    batch = Batch.of_sources(
        np.arange(len(samples)),
        tokens_per_sample=torch.full((len(samples),), 10.0, dtype=torch.float64),
        **collate_rows(samples, row, packing),
    )
    return batch_losses(proxy, batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_padded_is_alone(family: str) -> None:
    proxy = HuggingFaceProxy(random_model(family))
    if WAYS_ARE_KNOWN:
        assert proxy.rows.way == FAMILIES[family][0]
    samples = [sample(length) for length in (24, 20, 18, 40)]
    with torch.no_grad():
        alone = torch.cat([losses(proxy, [one], 64, False) for one in samples])
        padded, packed = losses(proxy, samples, 64, False), losses(proxy, samples, 64, True)
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "roformer"])
def test_a_model_that_sees_later_tokens_is_refused(family: str) -> None:
    with pytest.raises(ConfigError, match="attend to later tokens"):
        HuggingFaceProxy(random_model(family))


def test_an_encoder_may_be_made_a_decoder() -> None:
    HuggingFaceProxy(random_model("bert", is_decoder=True))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_a_row_may_be_longer_than_the_positions_that_a_model_knows(family: str) -> None:
    proxy = HuggingFaceProxy(random_model(family))
    samples = [sample(24) for _ in range(9)]
    with torch.no_grad():
        padded, packed = losses(proxy, samples, 192, False), losses(proxy, samples, 192, True)
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-4)


def test_positions_begin_anew_in_every_sample() -> None:
    segment = torch.tensor([[0, 0, 0, 1, 1, -1, -1, -1], [2, 2, 2, 2, 2, 2, 2, 2]])
    found = positions_in_samples(segment)
    assert found is not None
    assert found.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert positions_in_samples(segment[1:]) is None


def test_models_stay_in_eval_mode_and_give_gradients() -> None:
    model = random_model("gpt2")
    model.config.resid_pdrop = 0.5
    proxy = HuggingFaceProxy(model)
    proxy.train()  # as an engine may
    assert not any(module.training for module in proxy.modules())
    first, second = (losses(proxy, [sample(8)], 16, True).sum() for _ in range(2))
    grads = torch.autograd.grad(first + second, list(proxy.parameters()))
    assert all(torch.isfinite(g).all() for g in grads)
    model.training = True
    with pytest.raises(AssertionError):
        losses(proxy, [sample(8)], 16, True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_recomputed_layers_give_the_same_losses_and_gradients(family: str) -> None:
    results = []
    for recomputed in (False, True):
        model = random_model(family)
        if recomputed:
            layers = _layers(model)
            assert len(layers) == 2
            recompute_layers(layers)
        proxy = HuggingFaceProxy(model)
        torch.manual_seed(3)
        total = losses(proxy, [sample(24), sample(20)], 64, True).sum()
        results.append((total.detach(), *torch.autograd.grad(total, list(proxy.parameters()))))
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)


def test_a_model_without_sdpa_runs_with_the_attention_that_it_has(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_fastmix.config import ProxyConfig
    from megatron_fastmix.proxy.huggingface import build_huggingface_proxy

    model = random_model("gemma2")
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(type(model), "_supports_sdpa", False)
    proxy = build_huggingface_proxy(ProxyConfig(kind="huggingface", path=str(tmp_path)), seed=1)
    assert proxy.model.config._attn_implementation == "eager"
    samples = [sample(24), sample(20)]
    with torch.no_grad():
        alone = torch.cat([losses(proxy, [one], 64, False) for one in samples])
        packed = losses(proxy, samples, 64, True)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)

"""Rotary frequencies that follow the length: a sample's loss depends on it alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.proxy.huggingface import build_huggingface_proxy
from tests.unit.test_packed_models import losses, random_model, sample

pytest.importorskip("transformers", minversion="5")  # which has `rope_parameters`

DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
}


@pytest.mark.parametrize("seq_length", [64, 12, None])
@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}),
        (
            "phi3",
            {"rope_parameters": LONG, "original_max_position_embeddings": 16},
        ),
    ],
)
def test_a_loss_is_that_of_the_sample_alone(
    tmp_path: Any, family: str, more: dict[str, Any], seq_length: int | None
) -> None:
    random_model(family, **more).save_pretrained(tmp_path)
    samples = [sample(length) for length in (9, 12, *((40, 24) if seq_length == 64 else ()))]
    found = []
    for order in (samples, samples[::-1]):
        proxy = build_huggingface_proxy(
            ProxyConfig(kind="huggingface", path=str(tmp_path)), seed=1, seq_length=seq_length
        )
        with torch.no_grad():
            alone = torch.cat([losses(proxy, [one], 64, False) for one in order])
            padded, packed = losses(proxy, order, 64, False), losses(proxy, order, 88, True)
        torch.testing.assert_close(padded, alone, rtol=0, atol=1e-4)
        torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)
        found.append(alone)
    torch.testing.assert_close(found[0], found[1].flip(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seq_length", [12, 40])
def test_frequencies_are_those_of_transformers_at_that_length(
    tmp_path: Any, seq_length: int
) -> None:
    model = random_model("phi3", rope_parameters=LONG, original_max_position_embeddings=16)
    model.save_pretrained(tmp_path)
    proxy = build_huggingface_proxy(
        ProxyConfig(kind="huggingface", path=str(tmp_path)), seed=1, seq_length=seq_length
    )
    tokens, positions = torch.randint(3, 128, (1, seq_length)), torch.arange(seq_length)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=tokens, position_ids=positions).logits
        torch.testing.assert_close(proxy(tokens, positions, None), expected, rtol=0, atol=1e-4)

"""Megatron-core proxies of other shapes than the demo's."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from torch.overrides import TorchFunctionMode

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.proxy.build import build_model
from megatron_fastmix.proxy.cost import flops_per_token
from megatron_fastmix.proxy.megatron_cost import megatron_parameters
from megatron_fastmix.proxy.megatron_gpt import build_proxy, initialize_world_of_one, token_losses
from megatron_fastmix.proxy.provider import provided_parameters

SHAPES: dict[str, dict[str, Any]] = {
    "grouped queries": {"num_query_groups": 2},
    "heads of another width": {"kv_channels": 24},
    "half of a head rotated": {"rotary_base": 500_000, "rotary_percent": 0.5},
    "LayerNorm": {"normalization": "LayerNorm"},
    "normalised queries and keys": {"qk_layernorm": True, "kv_channels": 8},
    "normalised by LayerNorm": {"qk_layernorm": True, "normalization": "LayerNorm"},
    "untied": {"untie_embeddings_and_output_weights": True},
    "experts": {"num_experts": 4, "moe_ffn_hidden_size": 32},
    "one expert a token": {"num_experts": 4, "moe_router_topk": 1},
}
HAS_HYBRID = importlib.util.find_spec("megatron.core.models.hybrid") is not None
HYBRIDS = {
    "a GPT's layers one by one": {"hybrid_layer_pattern": "*-*-"},
    "experts among them": {"hybrid_layer_pattern": "*E-", "num_experts": 4},
}


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    """Process groups for this file alone: ranks that other tests fork need a parent without."""
    initialize_world_of_one()
    yield
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def test_ranks_on_gpus_need_no_interface_for_gloo() -> None:
    with pytest.raises(AssertionError, match="gloo is not initialized"):
        parallel_state.get_data_parallel_group_gloo()


def build(dtype: torch.dtype = torch.float32, **shape: Any) -> tuple[ProxyConfig, Any]:
    config = ProxyConfig(num_layers=2, hidden_size=64, num_attention_heads=4, **shape)
    return config, build_proxy(config, vocab_size=200, seq_length=32, seed=3, dtype=dtype)


def losses(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return token_losses(model, tokens[:, :-1], tokens[:, 1:])


def random_tokens() -> torch.Tensor:
    return torch.randint(0, 200, (2, 33), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [*SHAPES, *(HYBRIDS if HAS_HYBRID else [])])
def test_a_shape_trains_and_has_the_parameters_that_the_plan_counts(shape: str) -> None:
    config, model = build(**(SHAPES | HYBRIDS)[shape])
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == megatron_parameters(config, 200)
    tokens = random_tokens()
    loss = losses(model, tokens).mean()
    moves = torch.autograd.grad(loss, parameters)
    # A step along the gradient lowers the loss by about its squared norm while no token changes its
    # experts, where the loss jumps: in a hybrid one whose second and third logit differ by 6e-5
    # does at a step of 5e-4.
    squares = sum(float(g.double().square().sum()) for g in moves)
    assert all(g.abs().max() > 0 for g in moves)
    with torch.no_grad():
        for parameter, move in zip(parameters, moves, strict=True):
            parameter -= 1e-4 * move
        after = losses(model, tokens).mean()
    assert float(loss.detach() - after) == pytest.approx(1e-4 * squares, rel=0.01)


@pytest.mark.parametrize("shape", [*SHAPES, *(HYBRIDS if HAS_HYBRID else [])])
def test_no_token_sees_a_later_one(shape: str) -> None:
    _, model = build(**(SHAPES | HYBRIDS)[shape])
    tokens = random_tokens()
    later = tokens.clone()
    later[:, 20:] = (later[:, 20:] + 7) % 200
    with torch.no_grad():
        same = losses(model, tokens)[:, :19] - losses(model, later)[:, :19]
    assert same.abs().max() < 1e-5


def test_as_many_groups_as_heads_is_bitwise_the_plain_model() -> None:
    tokens = random_tokens()
    _, plain = build()
    _, grouped = build(num_query_groups=4, kv_channels=16, normalization="RMSNorm")
    assert torch.equal(losses(plain, tokens), losses(grouped, tokens))


def test_shared_keys_are_those_of_a_model_that_repeats_them() -> None:
    _, grouped = build(num_query_groups=2)
    _, full = build()
    weights = grouped.state_dict()
    for name, weight in full.state_dict().items():
        if weight is None or not isinstance(weight, torch.Tensor):
            continue
        found = weights[name]
        if name.endswith("linear_qkv.weight"):
            # A group holds its queries' heads, its key and its value, each of 16 rows.
            queries, keys, values = found.view(2, 4, 16, 64).split([2, 1, 1], dim=1)
            found = torch.cat(
                [queries.reshape(4, 1, 16, 64)]
                + [
                    part.repeat_interleave(2, dim=0).reshape(4, 1, 16, 64)
                    for part in (keys, values)
                ],
                dim=1,
            ).reshape(weight.shape)
        weight.copy_(found)
    torch.testing.assert_close(
        losses(full, random_tokens()), losses(grouped, random_tokens()), rtol=1e-5, atol=1e-5
    )


class _AttentionCalls(TorchFunctionMode):
    """Notes whether each call of torch's attention has shared heads."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: list[bool] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.shared.append(args[1].shape[1] != args[0].shape[1])
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("dtype", "masked", "shared"),
    [(torch.bfloat16, False, True), (torch.bfloat16, True, False), (torch.float32, False, False)],
)
def test_heads_are_shared_where_a_kernel_of_cuda_takes_them(
    dtype: torch.dtype, masked: bool, shared: bool
) -> None:
    """The one that takes them has neither masks nor fp32; without it each layer would hold (B,
    heads, S, S) scores."""
    _, model = build(dtype, num_query_groups=2)
    mask = torch.ones(2, 1, 32, 32, dtype=torch.bool).triu(1) if masked else None
    tokens = random_tokens()
    with _AttentionCalls() as calls:
        token_losses(model, tokens[:, :-1], tokens[:, 1:], mask)
    assert calls.shared == [shared, shared]


def test_experts_keep_samples_apart_and_drop_no_token() -> None:
    _, model = build(num_experts=4)
    # All tokens alike go to the same experts, more than a capacity would admit.
    tokens = torch.full((4, 33), 7)
    one, four = losses(model, tokens[:1]), losses(model, tokens)
    torch.testing.assert_close(four, one.expand(4, -1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputation_changes_no_bit(dtype: torch.dtype) -> None:
    tokens, results = random_tokens(), []
    for shape in ({}, {"recompute_granularity": "full"}):
        _, model = build(dtype, **shape)
        loss = losses(model, tokens).mean()
        results.append((loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))))
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
def test_norms_are_torchs_whatever_else_is_installed(
    monkeypatch: pytest.MonkeyPatch, normalization: str
) -> None:
    from megatron.core.models import backends
    from megatron.core.transformer import transformer_block

    class ApexNorm(torch.nn.Module):
        """Stands where apex's norm is taken by default, and as that one refuses RMSNorm."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("a default norm was built")

    monkeypatch.setattr(transformer_block, "LayerNormImpl", ApexNorm)
    monkeypatch.setattr(backends, "LNImpl", ApexNorm)
    _, model = build(normalization=normalization, qk_layernorm=True)
    norms = [type(m) for m in model.modules() if type(m).__name__.endswith("Norm")]
    assert norms == [getattr(torch.nn, normalization)] * (2 * 4 + 1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"num_query_groups": 3}, r"proxy\.num_query_groups: found 3; it must divide"),
        ({"rotary_percent": 0.0}, r"proxy\.rotary_percent"),
        ({"kv_channels": 7}, r"proxy\.kv_channels: found 7; .*must be even"),
        ({"num_experts": 2, "moe_router_topk": 3}, r"proxy\.moe_router_topk: found 3"),
        ({"moe_ffn_hidden_size": 8}, r"set num_experts, too"),
        ({"hybrid_layer_pattern": "*X"}, r"proxy\.hybrid_layer_pattern: found '\*X'"),
        ({"hybrid_layer_pattern": "*E"}, r"go together"),
        ({"kind": "provider"}, r"proxy\.provider: found None"),
        ({"kind": "provider", "provider": "module"}, r"write module:function"),
        ({"provider": "a:b"}, r"no other kind takes one"),
    ],
)
def test_shapes_that_cannot_be_are_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProxyConfig(**shape)


@pytest.mark.skipif(HAS_HYBRID, reason="this Megatron-core has HybridModel")
def test_a_hybrid_is_refused_where_megatron_core_has_none() -> None:
    with pytest.raises(ConfigError, match="has no HybridModel"):
        build(hybrid_layer_pattern="*-")


PROVIDER = """
import torch

class Bigram(torch.nn.Module):
    def __init__(self, vocab_size, dtype):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab_size, 8, dtype=dtype)
        self.output_layer = torch.nn.Linear(8, vocab_size, dtype=dtype)

    def forward(self, tokens, positions, attention_mask, labels=None):
        logits = self.output_layer(self.embedding(tokens))
        if labels is None:
            return logits
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")

def bigram(proxy, *, vocab_size, seq_length, dtype, tensor_model_parallel_size):
    return Bigram(vocab_size, dtype)

def nothing(proxy, **sizes):
    return None
"""


@pytest.fixture
def team_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "our_team_models.py").write_text(PROVIDER)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return "our_team_models"


def test_a_provider_builds_the_teams_own_model(team_module: str) -> None:
    config = ProxyConfig(kind="provider", provider=f"{team_module}:bigram")
    first, second = (build_model(config, vocab_size=50, seq_length=8, seed=2) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert first.output_layer.weight.is_output_layer
    assert provided_parameters(config, 50, 8) == (50 * 8 + 50 * 9,) * 2
    assert flops_per_token(config, 50, 8) == 6 * (50 * 8 + 50 * 9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "cannot import no_such_module"),
        ("our_team_models:f", "has no function f"),
        ("our_team_models:nothing", "returned a NoneType"),
    ],
)
def test_what_provides_nothing_is_refused(team_module: str, name: str, message: str) -> None:
    config = ProxyConfig(kind="provider", provider=name)
    with pytest.raises(ConfigError, match=message):
        build_model(config, vocab_size=50, seq_length=8, seed=2)

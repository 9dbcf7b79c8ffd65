"""The team's own model: the README's example, searched with at every ZeRO stage."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_fastmix.config import ProxyConfig, SearchConfig
from megatron_fastmix.config.strict_yaml import from_dict
from megatron_fastmix.deepspeed_engine.engine import whole_parameters
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.proxy.provider import provided_parameters
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.distributed.searches import load
from tests.distributed.test_one_pass import assert_same_products

README = Path(__file__).parents[2] / "megatron_fastmix" / "README.md"


@pytest.fixture
def our_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The README's module, where an import finds it, and the proxy that names it."""
    section = README.read_text().split("## Your own model\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (name,) = re.findall(r"provider: (\w+:\w+)", section)
    (tmp_path / f"{name.partition(':')[0]}.py").write_text(block)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
    return {"kind": "provider", "provider": name, **sizes}


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        slow(0, {}),
        slow(1, {}),
        (2, {"data.reset_attention_mask": True, "data.reset_position_ids": True}),
        (3, {}),
        slow(3, {"training.micro_batch_size": 1, "hypergradient.preconditioner": "adam"}),
    ],
)
def test_a_model_of_ones_own_has_the_exact_products(
    search_values: dict, our_models: dict[str, Any], stage: int, changes: dict[str, Any]
) -> None:
    search_values["proxy"] = our_models
    search_values["mixture"]["lr"] = 0
    assert_same_products(search_values, 2, **{"engine.zero_stage": stage}, **changes)


def test_its_parameters_are_counted_before_it_is_built(our_models: dict[str, Any]) -> None:
    layer = 32 * 2 + 32 * 96 + 96 + 32 * 32 + 32
    expected = 100 * 32 + 16 * 32 + 2 * layer + 32 * 100
    assert provided_parameters(ProxyConfig(**our_models), 100, 16) == (expected, expected)


def parallel_model(config: ProxyConfig, **sizes: Any) -> Any:
    """A provider whose layers Megatron-core splits over tensor-parallel ranks."""
    from megatron_fastmix.proxy.megatron_gpt import build_proxy

    return build_proxy(dataclasses.replace(config, kind="megatron", provider=None), seed=1, **sizes)


def counted(config: SearchConfig) -> tuple[float, float]:
    """Of a search, its parameters and its FLOPs a token."""
    search = Search(config)
    search.tokens = 1
    return whole_parameters(search.engine, search.tensor), search.training_flops


@pytest.mark.slow
def test_split_layers_are_counted_whole(search_values: dict) -> None:
    search_values["proxy"] |= {"kind": "provider", "provider": f"{__name__}:parallel_model"}
    (alone,) = run_ranks(1, counted, load(search_values))
    split = {"engine.tensor_model_parallel_size": 2, "engine.zero_stage": 1}
    assert run_ranks(2, counted, load(search_values, **split)) == [alone, alone]
    assert alone[1] == 6 * alone[0]


def test_what_is_run_again_is_the_functions_to_say(
    search_values: dict, our_models: dict[str, Any]
) -> None:
    search_values["proxy"] = our_models | {"recompute_granularity": "full"}
    with pytest.raises(ConfigError, match=r"recompute_granularity: found 'full'.*your function"):
        from_dict(SearchConfig, search_values)

"""Fine-tuning searches from pretrained models: Hugging Face, LoRA, and an earlier search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fastmix.checkpoint import store
from megatron_fastmix.checkpoint.identity import check_identity
from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.proxy.starting_point import check_model_folder
from megatron_fastmix.search.inputs import check_inputs
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.conftest import SOURCES
from tests.distributed.searches import load, parameters_of, products_of, run_search

transformers = pytest.importorskip("transformers")


def make_model(folder: Path, family: str) -> Path:
    """A small random model of a family, saved as users have theirs."""
    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    torch.manual_seed(5)
    model = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(**sizes, tie_word_embeddings=True)
        ),
    }[family]()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def answer_values(search_values: dict, answer_corpora: Path) -> dict:
    search_values["sources"] = [
        {"name": name, "path": str(answer_corpora / name)} for name in SOURCES
    ]
    search_values["targets"] = [{"name": "target", "path": str(answer_corpora / "target")}]
    search_values["proxy"] = {}
    return search_values


@pytest.mark.parametrize(
    ("family", "lora_rank", "ranks", "stage"),
    [slow("llama", 0, 2, 2), slow("qwen2", 0, 2, 3), ("qwen2", 4, 2, 2), slow("llama", 4, 2, 3)],
)
def test_products_depend_neither_on_sharding_nor_on_the_estimator(
    answer_values: dict, tmp_path: Path, family: str, lora_rank: int, ranks: int, stage: int
) -> None:
    if lora_rank:
        pytest.importorskip("peft")
    answer_values["proxy"] = {
        "kind": "huggingface",
        "path": str(make_model(tmp_path / family, family)),
        "lora_rank": lora_rank,
    }
    answer_values["mixture"]["lr"] = 0
    exact = load(
        answer_values,
        run_dir=tmp_path / "exact",
        **{"engine.zero_stage": 0, "hypergradient.estimator": "per_source"},
    )
    run_ranks(1, run_search, exact)
    config = load(answer_values, **{"engine.zero_stage": stage})
    run_ranks(ranks, run_search, config)
    expected, found = products_of(exact.run_dir), products_of(config.run_dir)
    scale = np.abs(expected).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found / scale, expected / scale, rtol=5e-3, atol=5e-3)


def trained_names(config: Any) -> list[str]:
    search = Search(config)
    return [n for n, p in search.engine.module.named_parameters() if p.requires_grad]


def test_lora_trains_its_adapters_alone(answer_values: dict, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    path = str(make_model(tmp_path / "llama", "llama"))
    answer_values["proxy"] = {"kind": "huggingface", "path": path, "lora_rank": 4}
    (names,) = run_ranks(1, trained_names, load(answer_values))
    assert names
    assert all("lora_" in name for name in names)


def resumed(config: Any, accept_changes: bool = False) -> int:
    return Search(config, accept_changes=accept_changes).step


def test_adapters_go_on_with_the_model_that_they_were_trained_on(
    answer_values: dict, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    model = make_model(tmp_path / "llama", "llama")
    answer_values["proxy"] = {"kind": "huggingface", "path": str(model), "lora_rank": 4}
    config = load(answer_values)
    run_ranks(1, run_search, config, 2)
    assert run_ranks(1, resumed, config) == [2]

    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # of the same size, and with the same names and shapes in its head
    weights.write_bytes(content)
    with pytest.raises(
        AssertionError, match=r"proxy\.path: the content is not that .*--accept-cha"
    ):
        run_ranks(1, resumed, config)
    assert run_ranks(1, resumed, config, True) == [2]
    # Releases of before kept no fingerprint of the model.
    before = {"tokenizer": "00", "sources": [], "targets": []}
    check_identity(before, before | {"base": "11"}, accept_changes=False)


@pytest.mark.slow
def test_a_pretrained_search_finds_the_useful_answers(answer_values: dict, tmp_path: Path) -> None:
    path = str(make_model(tmp_path / "qwen2", "qwen2"))
    answer_values["proxy"] = {"kind": "huggingface", "path": path}
    changes = {"training.train_iters": 60, "mixture.inner_steps": 3, "mixture.lr": 0.2}
    config = load(answer_values, **changes)
    history = run_ranks(2, run_search, config)[0]["history"]
    assert history[-1].argmax() == 0
    mixture = json.loads((Path(config.run_dir) / "mixture.json").read_text())
    assert mixture["cost"]["training_flops"] > 0


def initial_parameters(config: Any) -> np.ndarray:
    return parameters_of(Search(config))


def files_checked(config: Any) -> int:
    """How many files of the start this rank reads whole, to know that they are good."""
    checked, check = [], store._check_file

    def noted(path: Path, record: dict[str, Any]) -> None:
        checked.append(path)
        check(path, record)

    store._check_file = noted  # of this rank's own process
    Search(config)
    return len(checked)


@pytest.mark.parametrize("stage", [slow(0), 2, slow(3)])
def test_a_search_starts_from_the_proxy_of_an_earlier_one(
    search_values: dict, answer_corpora: Path, tmp_path: Path, stage: int
) -> None:
    earlier = load(search_values, run_dir=tmp_path / "earlier", **{"engine.zero_stage": stage})
    trained = run_ranks(2, run_search, earlier)[0]["parameters"]
    search_values["sources"] = [
        {"name": name, "path": str(answer_corpora / name)} for name in SOURCES
    ]
    config = load(search_values, **{"proxy.checkpoint": earlier.run_dir})
    (found,) = run_ranks(1, initial_parameters, config)
    np.testing.assert_allclose(found, trained, rtol=0, atol=1e-7)
    assert run_ranks(2, files_checked, config) == [1, 1]

    other = load(search_values, **{"proxy.checkpoint": earlier.run_dir, "proxy.hidden_size": 64})
    with pytest.raises(ConfigError, match=r"proxy\.hidden_size: 32 there, 64 here"):
        check_inputs(other, 1)
    # Of another vocabulary, of whatever size, its embeddings mean nothing.
    of_numbers = {"tokenizer.tokenizer_type": "NullTokenizer", "tokenizer.vocab_size": 256}
    other = load(search_values, **{"proxy.checkpoint": earlier.run_dir, **of_numbers})
    with pytest.raises(ConfigError, match=r"tokenizer: ByteLevelTokenizer, of sha256 .*there"):
        check_inputs(other, 1)


def test_what_is_no_model_is_refused_before_training(tmp_path: Path, answer_values: dict) -> None:
    answer_values["proxy"] = {"kind": "huggingface", "path": str(tmp_path / "none")}
    config = load(answer_values)
    with pytest.raises(ConfigError, match="found no folder"):
        check_inputs(config, 1)
    folder = tmp_path / "none"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        check_model_folder(config.proxy, 300, config.tokenizer, 64)
    (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ConfigError, match="no causal language model"):
        check_model_folder(config.proxy, 300, config.tokenizer, 64)
    (folder / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "vocab_size": 100}'
    )
    with pytest.raises(ConfigError, match="embeds 100 ids, the tokenizer has 300"):
        check_model_folder(config.proxy, 300, config.tokenizer, 64)
    (folder / "tokenizer.json").write_text("{}")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="is not the tokenizer of the model"):
        check_model_folder(
            config.proxy,
            100,
            TokenizerConfig(
                tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(tmp_path / "other.json")
            ),
            64,
        )

"""What is known of a Hugging Face model from its files before any rank starts, and of its weights
when they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_fastmix.config import ProxyConfig, TokenizerConfig, load_config
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.proxy.huggingface import build_huggingface_proxy
from megatron_fastmix.proxy.starting_point import check_model_folder
from megatron_fastmix.search.inputs import check_inputs
from tests.conftest import write_rows

NAME = "some-org/Model-1B"


def write_model(folder: Path, **settings: Any) -> ProxyConfig:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"architectures": ["LlamaForCausalLM"]} | settings
    (folder / "config.json").write_text(json.dumps(settings))
    return ProxyConfig(kind="huggingface", path=str(folder))


def own_tokenizer(folder: Path) -> TokenizerConfig:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text("{}")
    return TokenizerConfig(
        tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder / "tokenizer.json")
    )


def test_a_models_own_tokenizer_may_have_ids_that_it_does_not_embed(tmp_path):
    proxy = write_model(tmp_path, vocab_size=262_144)  # as Gemma 3 of text alone
    assert check_model_folder(proxy, 262_145, own_tokenizer(tmp_path), 64) == 262_144
    other = TokenizerConfig(tokenizer_type="ByteLevelTokenizer")
    with pytest.raises(ConfigError, match="embeds 262144 ids, the tokenizer has 262145"):
        check_model_folder(proxy, 262_145, other, 64)


def test_data_hold_ids_that_the_model_embeds_alone(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<|end|>": 1}, []))
    backend.add_special_tokens(["<|end|>", "<image>"])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    settings = transformers.LlamaConfig(vocab_size=2, num_attention_heads=2, **sizes)
    transformers.LlamaForCausalLM(settings).save_pretrained(tmp_path / "model")
    backend.save(str(tmp_path / "model" / "tokenizer.json"))
    values = {
        "run_dir": str(tmp_path / "run"),
        "sources": [{"name": n, "path": str(tmp_path / n)} for n in "ab"],
        "targets": [{"name": "t", "path": str(tmp_path / "t")}],
        "tokenizer": {
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": str(tmp_path / "model"),
        },
        "data": {"seq_length": 8},
        "proxy": {"kind": "huggingface", "path": str(tmp_path / "model")},
    }
    (tmp_path / "search.yaml").write_text(json.dumps(values))
    for name in "abt":
        write_rows(tmp_path / name, [([0, 0], [0, 1])] * 20, 3)
    config = load_config(tmp_path / "search.yaml")
    assert check_inputs(config, 1).tokenizer.vocab_size == 3
    write_rows(tmp_path / "b", [([0, 0], [0, 1])] * 20 + [([2, 0], [0, 1])], 3)
    with pytest.raises(DataError, match=r"is id 2, but .* or the model embeds no more"):
        check_inputs(config, 1)


def test_the_models_other_tokenizer_file_is_its_own_too(tmp_path):
    proxy = write_model(tmp_path / "model", vocab_size=300)
    own_tokenizer(tmp_path / "model")
    of_pieces = [tmp_path / "model" / "tokenizer.model", tmp_path / "tokenizer.model"]
    for content, file in zip((b"pieces", b"others"), of_pieces, strict=True):
        file.write_bytes(content)
    first, second = (
        TokenizerConfig(tokenizer_type="SentencePieceTokenizer", tokenizer_model=str(file))
        for file in of_pieces
    )
    assert check_model_folder(proxy, 290, first, 64) == 290
    with pytest.raises(ConfigError, match="is not the tokenizer of the model"):
        check_model_folder(proxy, 290, second, 64)


@pytest.mark.parametrize("rows", [{"vocab_size": 100}, {}])
def test_a_model_of_images_and_text_counts_by_its_text(tmp_path, rows):
    names = ["Qwen3_5ForConditionalGeneration"]
    proxy = write_model(tmp_path, architectures=names, text_config=rows)
    found = check_model_folder(proxy, 300, own_tokenizer(tmp_path), 64)
    assert found == rows.get("vocab_size", 300)
    proxy = write_model(tmp_path, architectures=["T5ForConditionalGeneration"], vocab_size=300)
    with pytest.raises(ConfigError, match="no causal language model"):
        check_model_folder(proxy, 300, own_tokenizer(tmp_path), 64)


@pytest.mark.parametrize("key", ["max_position_embeddings", "n_positions"])
def test_rows_are_no_longer_than_the_model_has_positions(tmp_path, key):
    proxy = write_model(tmp_path, vocab_size=300, **{key: 64})
    assert check_model_folder(proxy, 300, own_tokenizer(tmp_path), 64) == 300
    with pytest.raises(ConfigError, match="65 is beyond the model's 64 positions"):
        check_model_folder(proxy, 300, own_tokenizer(tmp_path), 65)
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    for name in ("rope_scaling", "rope_parameters"):
        proxy = write_model(tmp_path, vocab_size=300, **{key: 64, name: dynamic})
        assert check_model_folder(proxy, 300, own_tokenizer(tmp_path), 65) == 300


def test_a_model_by_name_is_checked_as_one_in_a_folder(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = tmp_path / f"models--{NAME.replace('/', '--')}"
    write_model(cached / "snapshots" / "abc", vocab_size=100)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    proxy = ProxyConfig(kind="huggingface", path=NAME)
    with pytest.raises(ConfigError, match="embeds 100 ids, the tokenizer has 258"):
        check_model_folder(proxy, 258, TokenizerConfig(tokenizer_type="ByteLevelTokenizer"), 64)
    own_tokenizer(cached / "snapshots" / "abc")
    other = own_tokenizer(tmp_path / "other")
    assert check_model_folder(proxy, 258, other, 64) == 100
    (tmp_path / "other" / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="is not the tokenizer of the model"):
        check_model_folder(proxy, 258, other, 64)


@pytest.mark.parametrize("lost", ["layers.1.", "lm_head", "embed_tokens"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_the_files_do_not_have_are_not_made_up(tmp_path, lost, tied):
    transformers = pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    config = transformers.Qwen2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    proxy = ProxyConfig(kind="huggingface", path=str(tmp_path))
    build_huggingface_proxy(proxy, seed=1)
    file = tmp_path / "model.safetensors"
    kept = {key: t for key, t in safetensors.load_file(file).items() if lost not in key}
    safetensors.save_file(kept, file, metadata={"format": "pt"})
    if tied and lost == "lm_head":  # it is the embedding
        build_huggingface_proxy(proxy, seed=1)
        return
    with pytest.raises(ConfigError, match=rf"no values for \d+ of .* such as .*{lost}"):
        build_huggingface_proxy(proxy, seed=1)

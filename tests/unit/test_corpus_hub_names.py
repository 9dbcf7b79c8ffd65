"""Names of the Hugging Face Hub where a path of a tokenizer or a template is expected."""

import json

import pytest

from megatron_fastmix.corpus.documents.chat_template import read_chat_template
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, DataError

tokenizers = pytest.importorskip("tokenizers")
NAME = "some-org/Model-1.5B"


def tokenizer_json():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<|end|>": 1}, []))
    backend.add_special_tokens(["<|end|>"])
    return backend.to_str()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub with nothing in it; and a working folder with nothing in it."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.mark.parametrize("name", [NAME, "gpt2"])
@pytest.mark.parametrize(
    "kind", ["HuggingFaceTokenizer", "GPT2BPETokenizer", "SentencePieceTokenizer", "TikTokenizer"]
)
def test_a_name_that_is_not_here_gets_one_message_with_the_way_out(cache, kind, name):
    folder = name.rpartition("/")[2]
    with pytest.raises(ConfigError, match=f"hf download {name} --local-dir {folder}"):
        load_tokenizer(kind, name)


def test_a_template_of_a_name_that_is_not_here_is_refused_alike(cache):
    with pytest.raises(ConfigError, match=rf"chat_template: {NAME}.*`hf download {NAME}"):
        read_chat_template(NAME)


def test_a_name_in_the_cache_is_its_tokenizer_and_its_template(cache):
    folder = cache / f"models--{NAME.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (snapshot / "tokenizer.json").write_text(tokenizer_json())
    settings = {"eos_token": "<|end|>", "chat_template": "{{ messages }}"}
    (snapshot / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer("HuggingFaceTokenizer", NAME).eod == 1
    assert read_chat_template(NAME).source == "{{ messages }}"


def test_a_folder_wins_over_a_name(cache):
    (cache.parent / NAME).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"{NAME} holds none of tokenizer.json"):
        load_tokenizer("HuggingFaceTokenizer", NAME)


@pytest.mark.parametrize("path", ["here/none.json", "/no/such", "tokenizer.model", "here/missing"])
def test_a_path_is_no_name(cache, path):
    (cache.parent / "here").mkdir()
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        load_tokenizer("HuggingFaceTokenizer", path)


@pytest.mark.parametrize("value", ["1", 1.0, [[1]], {"id": 1}, True])
def test_an_end_token_that_is_no_id_is_refused_not_guessed(cache, value):
    folder = cache.parent / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id is"):
        load_tokenizer("HuggingFaceTokenizer", str(folder))


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config"])
def test_the_end_token_of_a_nested_language_model_counts(cache, key):
    folder = cache.parent / "model"
    folder.mkdir()
    # With a byte-order mark, as an editor leaves it.
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8-sig")
    (folder / "config.json").write_text(json.dumps({key: {"eos_token_id": [1, 0]}}))
    tokenizer = load_tokenizer("HuggingFaceTokenizer", str(folder))
    assert tokenizer.eod == 1
    assert not tokenizer.notes


def test_a_folder_without_the_tokenizer_says_what_it_holds(tmp_path):
    def refused(kind, message):
        with pytest.raises(ConfigError, match=message):
            load_tokenizer(kind, str(tmp_path))

    refused("HuggingFaceTokenizer", r"holds none of tokenizer.json; it holds nothing: give")
    below = tmp_path / "snapshots" / "5f0b02c"  # as in the hub's cache
    below.mkdir(parents=True)
    (below / "tokenizer.json").write_text(tokenizer_json())
    refused("HuggingFaceTokenizer", r"give the folder .*snapshots/5f0b02c$")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "tokenizer.json").write_text(tokenizer_json())
    refused("HuggingFaceTokenizer", r"give the folder .*part$")
    (tmp_path / "vocab.json").write_text("{}")
    refused("HuggingFaceTokenizer", r"it holds vocab.json: use the type GPT2BPETokenizer")
    refused("SentencePieceTokenizer", r"holds none of tokenizer.model, spiece.model")
    (tmp_path / "my.model").write_text("no model")
    with pytest.raises(DataError, match=r"my.model: not a SentencePiece model"):
        load_tokenizer("Llama2Tokenizer", str(tmp_path))
    (tmp_path / "other.model").write_text("no model")
    refused(
        "SentencePieceTokenizer", r"several models, my.model, other.model; give the path of one"
    )

"""Tokenizers: round trips, special ids, identity, and what Megatron asks of them."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fastmix.corpus.sentencepiece_training import SentencePieceConfig, train_sentencepiece
from megatron_fastmix.corpus.tokenizers.registry import ByteLevelTokenizer, load_tokenizer
from megatron_fastmix.errors import ConfigError, DataError

SENTENCE = (
    "the search learns proportions while training one small model on every source and moves "
    "weights towards whatever lowers held out loss; readers, writers, tokenizers and manifests "
    "carry hashes licences origins counts"
)
WORDS = SENTENCE.split()
PROSE = [
    f"{WORDS[n % 31]} {WORDS[n % 17]}  {WORDS[n % 7]}\n\treturn value_{n} + {n * n}  # naïve"
    for n in range(300)
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "prose.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in PROSE))
    return path


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def model(request, corpus):
    path = corpus.with_name(f"{request.param}.model")
    train_sentencepiece(
        [corpus], path, SentencePieceConfig(vocab_size=340, model_type=request.param)
    )
    return path


@pytest.fixture(scope="module")
def huggingface(corpus):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROSE, trainer)
    path = corpus.with_name("tokenizer.json")
    tokenizer.save(str(path))
    return path


def check_interface(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "", text]) == [ids, [], ids]
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    # Megatron masks every label that equals pad.
    assert tokenizer.pad not in ids
    assert tokenizer.eod not in ids
    assert 0 <= tokenizer.eod == tokenizer.eos < tokenizer.vocab_size
    others = [v for k, v in tokenizer.special_tokens_dict.items() if k != "pad_token"]
    assert tokenizer.pad not in others
    json.dumps(tokenizer.unique_identifiers)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(text) == ids
    assert copy.unique_identifiers == tokenizer.unique_identifiers


TRICKY = "  two  spaces\n\n\ttab, naïve 東京 🙂 \0 end "


def test_sentencepiece(model):
    tokenizer = load_tokenizer("SentencePieceTokenizer", str(model))
    check_interface(tokenizer, TRICKY)
    assert tokenizer.vocab_size == 340
    assert tokenizer.special_tokens_dict == {"bos_token": 1, "eos_token": 2, "pad_token": 3}


def test_huggingface_file_and_folder(huggingface):
    tokenizer = load_tokenizer("HuggingFaceTokenizer", str(huggingface))
    check_interface(tokenizer, TRICKY)
    assert tokenizer.special_tokens_dict == {"eos_token": 0, "pad_token": 1}
    assert (
        load_tokenizer("HuggingFaceTokenizer", str(huggingface.parent)).sha256 == tokenizer.sha256
    )


def test_huggingface_special_tokens_of_its_configuration(huggingface, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(huggingface.read_bytes())
    settings = path.with_name("tokenizer_config.json")
    settings.write_text(json.dumps({"eos_token": {"content": "<|pad|>"}, "pad_token": "<|pad|>"}))
    tokenizer = load_tokenizer("HuggingFaceTokenizer", str(path))
    assert (tokenizer.eod, tokenizer.pad) == (1, -1)
    settings.write_text(json.dumps({"eos_token": "absent"}))
    with pytest.raises(DataError, match="names 'absent' as eos_token, which is no token"):
        load_tokenizer("HuggingFaceTokenizer", str(path))


@given(st.text())
def test_bytes_round_trip(text):
    check_interface(ByteLevelTokenizer(), text.encode("utf-8", "ignore").decode())


def test_training_is_deterministic_and_idempotent(corpus, tmp_path):
    config = SentencePieceConfig(vocab_size=300)
    first, second = tmp_path / "first.model", tmp_path / "second.model"
    assert train_sentencepiece([corpus, corpus], first, config, weights=[1, 3])
    assert train_sentencepiece([corpus, corpus], second, config, weights=[1, 3])
    assert first.read_bytes() == second.read_bytes()
    assert not train_sentencepiece([corpus, corpus], first, config, weights=[1, 3])
    first.write_bytes(b"damaged")
    assert train_sentencepiece([corpus, corpus], first, config, weights=[1, 3])
    assert first.read_bytes() == second.read_bytes()


def test_weights_decide_what_is_sampled(tmp_path):
    paths = []
    for letter in "xy":
        path = tmp_path / f"{letter}.jsonl"
        path.write_text("".join(json.dumps({"text": letter * 8 + " z"}) + "\n" for _ in range(99)))
        paths.append(path)
    config = SentencePieceConfig(vocab_size=264, sample_bytes=500)
    train_sentencepiece(paths, tmp_path / "only_x.model", config, weights=[1, 0])
    tokenizer = load_tokenizer("SentencePieceTokenizer", str(tmp_path / "only_x.model"))
    assert len(tokenizer.encode("xxxxxxxx")) < len(tokenizer.encode("yyyyyyyy"))


def test_what_cannot_be_trained_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match="vocab_size: found 100"):
        SentencePieceConfig(vocab_size=100)
    with pytest.raises(ConfigError, match="weights"):
        train_sentencepiece(
            [corpus], tmp_path / "m", SentencePieceConfig(vocab_size=300), weights=[1, 2]
        )
    for weights in ([1, float("nan")], [1, float("inf")], [1e308, 1e308]):
        with pytest.raises(ConfigError, match="weights: found"):
            train_sentencepiece(
                [corpus] * 2, tmp_path / "m", SentencePieceConfig(vocab_size=300), weights=weights
            )
    with pytest.raises(DataError, match="smaller vocabulary or more text"):
        train_sentencepiece([corpus], tmp_path / "m", SentencePieceConfig(vocab_size=30_000))


def test_what_cannot_be_loaded_is_refused(tmp_path):
    bad = tmp_path / "bad.model"
    bad.write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="choose one of SentencePieceTokenizer"):
        load_tokenizer("GPT5Tokenizer")
    with pytest.raises(ConfigError, match="needs the path"):
        load_tokenizer("SentencePieceTokenizer")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        load_tokenizer("SentencePieceTokenizer", str(bad))
    with pytest.raises(DataError, match="not a tokenizer"):
        load_tokenizer("HuggingFaceTokenizer", str(bad))
    with pytest.raises(DataError, match="cannot read"):
        load_tokenizer("SentencePieceTokenizer", str(tmp_path / "none.model"))
    bad.write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        load_tokenizer("SentencePieceTokenizer", str(bad))

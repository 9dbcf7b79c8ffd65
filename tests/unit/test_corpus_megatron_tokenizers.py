"""The tokenizers that Megatron teams have: the ids are Megatron's, and so is the end token."""

import base64
import json
import pickle

import numpy as np
import pytest

from megatron_fastmix.cli.main import main
from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.indexed.indexed_files import check_vocabulary
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, DataError
from tests.conftest import write_dataset
from tests.unit.test_corpus_whole_text import encode, train_sentencepiece

TEXT = "what time is it,  naïve 東京?\n</s> 12"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("gpt2")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["what time is it in the city"] * 9, trainer)
    backend.model.save(str(folder))
    return folder


def test_gpt2_ids_are_those_of_transformers(gpt2):
    transformers = pytest.importorskip("transformers")
    files = {"vocab_file": str(gpt2 / "vocab.json"), "merge_file": str(gpt2 / "merges.txt")}
    tokenizer = load_tokenizer("GPT2BPETokenizer", **files)
    reference = transformers.AutoTokenizer.from_pretrained(gpt2, tokenizer_type="gpt2")
    for text in (TEXT, "it<|endoftext|>is"):
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    vocabulary = json.loads((gpt2 / "vocab.json").read_text())
    assert (tokenizer.eod, tokenizer.notes) == (vocabulary["<|endoftext|>"], ())
    folder = load_tokenizer("GPT2BPETokenizer", str(gpt2))
    assert folder.sha256 == tokenizer.sha256
    assert pickle.loads(pickle.dumps(folder)).encode(TEXT) == tokenizer.encode(TEXT)


def test_gpt2_merges_may_have_ends_of_lines_of_windows(gpt2, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text((gpt2 / name).read_text(), newline="\r\n")
    assert b"\r\n" in (tmp_path / "merges.txt").read_bytes()
    found, expected = (load_tokenizer("GPT2BPETokenizer", str(at)) for at in (tmp_path, gpt2))
    assert (found.encode(TEXT), found.sha256) == (expected.encode(TEXT), expected.sha256)


def test_damaged_gpt2_files_are_refused(gpt2, tmp_path):
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    (tmp_path / "vocab.json").write_text((gpt2 / "vocab.json").read_text())
    with pytest.raises(DataError, match=r"merges\.txt: expected two pieces"):
        load_tokenizer("GPT2BPETokenizer", str(tmp_path))
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(DataError, match=r"vocab\.json: has no <\|endoftext\|>"):
        load_tokenizer("GPT2BPETokenizer", str(tmp_path))
    with pytest.raises(ConfigError, match="vocab_file and merge_file"):
        load_tokenizer("GPT2BPETokenizer")


def write_tiktoken(path, extra=(b" is", b"it", b"ha", b"hat", b"what")):
    pieces = [*(bytes([i]) for i in range(256)), *extra]
    values = [
        {"rank": i, "token_bytes": base64.b64encode(p).decode(), "token_str": ""}
        for i, p in enumerate(pieces)
    ]
    path.write_text(json.dumps(values))
    return len(pieces)


SPECIAL = {"tiktoken_num_special_tokens": 10}


def test_tiktoken_ids_are_those_of_megatron_core(tmp_path):
    pytest.importorskip("tiktoken")
    size = 10 + write_tiktoken(tmp_path / "vocab.json")
    tokenizer = load_tokenizer(
        "TikTokenizer", str(tmp_path / "vocab.json"), vocab_size=size, **SPECIAL
    )
    assert (tokenizer.eod, tokenizer.bos, tokenizer.pad, tokenizer.vocab_size) == (2, 1, 4, size)
    assert tokenizer.encode("what is</s>") == [10 + 260, 10 + 256, 2]
    plain = TEXT.replace("</s>", "")
    assert tokenizer.decode(tokenizer.encode(TEXT)) == plain
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(TEXT) == tokenizer.encode(TEXT)
    from megatron.core.tokenizers.text.libraries.tiktoken_tokenizer import TikTokenTokenizer

    reference = TikTokenTokenizer(
        str(tmp_path / "vocab.json"), num_special_tokens=10, vocab_size=size
    )
    assert reference.text_to_ids(TEXT) == tokenizer.encode(TEXT)


def test_tiktoken_conversations_are_one_text(tmp_path):
    pytest.importorskip("tiktoken")
    size = 10 + write_tiktoken(tmp_path / "vocab.json")
    tokenizer = load_tokenizer("TikTokenizer", str(tmp_path), vocab_size=size, **SPECIAL)
    turns = [
        {"role": "user", "content": "what is it, 東?"},
        {"role": "assistant", "content": "é what is it"},
    ]
    ids, learned = encode(tokenizer, {"messages": turns})
    text = "<s><|user|>\nwhat is it, 東?</s> <|assistant|>\né what is it</s>"
    assert ids == tokenizer.encode(text)
    assert tokenizer.decode(learned) == "é what is it"
    assert learned[-1] == 2
    turns[0]["content"] = "is </s> it"
    assert [i for i in encode(tokenizer, {"messages": turns})[0] if i < 10] == [1, 2, 2]


def test_tiktoken_files_that_do_not_fit_are_refused(tmp_path):
    pytest.importorskip("tiktoken")
    size = 10 + write_tiktoken(tmp_path / "vocab.json")
    path = str(tmp_path / "vocab.json")
    with pytest.raises(DataError, match="261 pieces, the vocabulary size asks for 262"):
        load_tokenizer("TikTokenizer", path, vocab_size=size + 1, **SPECIAL)
    with pytest.raises(ConfigError, match="tiktoken_num_special_tokens: found 3"):
        load_tokenizer("TikTokenizer", path, tiktoken_num_special_tokens=3)
    with pytest.raises(ConfigError, match="tiktoken_special_tokens: found <unk>"):
        load_tokenizer("TikTokenizer", path, tiktoken_special_tokens=["<unk>"])
    write_tiktoken(tmp_path / "vocab.json", extra=(b"a", b"is", b"it", b"at", b"in"))
    with pytest.raises(DataError, match="a piece occurs twice"):
        load_tokenizer("TikTokenizer", path, vocab_size=size, **SPECIAL)
    (tmp_path / "vocab.json").write_text("[3]")
    with pytest.raises(DataError, match="entry 1 is not the piece"):
        load_tokenizer("TikTokenizer", path, vocab_size=11, **SPECIAL)


def test_other_names_of_sentencepiece(tmp_path):
    own = train_sentencepiece(tmp_path, model_type="bpe")
    for name in ("Llama2Tokenizer", "GPTSentencePieceTokenizer"):
        tokenizer = load_tokenizer(name, str(tmp_path / "m.model"))
        assert tokenizer.tokenizer_type == name
        assert (tokenizer.sha256, tokenizer.eod) == (own.sha256, 2)
        assert tokenizer.encode(TEXT) == own.encode(TEXT)


def test_an_end_token_past_the_models_pieces(tmp_path):
    own = train_sentencepiece(tmp_path, model_type="bpe")
    size = own.vocab_size
    write_dataset(tmp_path / "legacy", [[5, 6, size]], size + 1)
    with pytest.raises(DataError, match=r"state its end token as tokenizer\.eod"):
        check_vocabulary(tmp_path / "legacy", size)
    tokenizer = load_tokenizer("SentencePieceTokenizer", str(tmp_path / "m.model"), eod=size)
    check_vocabulary(tmp_path / "legacy", tokenizer.vocab_size)
    assert (tokenizer.eod, tokenizer.vocab_size) == (size, size + 1)
    assert tokenizer.sha256 != own.sha256
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert (copy.eod, copy.vocab_size, copy.sha256) == (size, size + 1, tokenizer.sha256)
    assert copy.encode_flat([TEXT])[0].tolist() == own.encode(TEXT)
    assert copy.decode([*own.encode("what"), size]) == "what"
    assert copy.show(size) == "<eod>"


def test_a_model_without_an_end_token_takes_the_one_that_is_stated(tmp_path):
    from sentencepiece import SentencePieceProcessor

    with pytest.raises(DataError, match=r"no end-of-sentence piece.*or give the id.*\(--eod\)"):
        train_sentencepiece(tmp_path, model_type="bpe", eos_id=-1)
    model = str(tmp_path / "m.model")
    own = SentencePieceProcessor(model_file=model)
    size = own.get_piece_size()
    tokenizer = load_tokenizer("SentencePieceTokenizer", model, eod=size)
    copy = pickle.loads(pickle.dumps(tokenizer))
    for each in (tokenizer, copy):
        assert (each.eod, each.vocab_size) == (size, size + 1)
        assert each.encode(TEXT) == own.encode(TEXT)


def test_numbers_are_a_tokenizer_of_their_own(tmp_path):
    tokenizer = load_tokenizer("NullTokenizer", vocab_size=500)
    assert (tokenizer.eod, tokenizer.vocab_size) == (500, 501)
    assert tokenizer.encode("3 499") == [3, 499]
    with pytest.raises(ConfigError, match="NullTokenizer needs the number of ids"):
        load_tokenizer("NullTokenizer")
    with pytest.raises(DataError, match="reads numbers from 0 to 499"):
        tokenizer.encode("3 500")
    (tmp_path / "in.jsonl").write_text('{"text": "3 499"}\n')
    flags = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "500", "--append-eod"]
    output = ["--output-prefix", str(tmp_path / "x"), "--workers", "1"]
    assert main(["preprocess", "--input", str(tmp_path / "in.jsonl"), *output, *flags]) == 0
    assert np.fromfile(tmp_path / "x_text_document.bin", np.uint16).tolist() == [3, 499, 500]


def test_sizes_that_are_none_are_refused():
    with pytest.raises(ConfigError, match=r"tokenizer\.eod"):
        TokenizerConfig(tokenizer_type="NullTokenizer", eod=-1)
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size"):
        TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=0)

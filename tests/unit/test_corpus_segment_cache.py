"""The table of parts gives exactly the ids of SentencePiece, or is not used."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fastmix.corpus import segment_cache
from megatron_fastmix.corpus.sentencepiece_model import parse_model
from megatron_fastmix.corpus.tokenizers import SentencePieceTokenizer

LINES = [
    f"{'    ' * (n % 3)}if value_{n % 9} == {n * n}: return naïve({n % 5})  # the quick brown fox"
    for n in range(400)
]


def train(**options):
    model = io.BytesIO()
    values = {
        "vocab_size": 420,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": 3,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, **values
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def plain():
    return train()


def ids_of(tokenizer, texts):
    flat, lengths = tokenizer.encode_flat(texts)
    return [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])]


FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from(["value_", "  ", " ", "\n", "\t", "return", "12", "\r\n", "\0", "naïve"]),
        st.text(max_size=6),
        st.sampled_from(
            ["\u2581", "東京", "🙂", "e\u0301", "\u00a0", "x" * 15, "y" * 16, "_" * 40]
        ),
    ),
    max_size=20,
).map("".join)
# Half a surrogate pair is no text.
TEXTS = st.lists(FRAGMENTS.map(lambda t: t.encode("utf-8", "ignore").decode()), max_size=6)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_ids_equal_those_of_sentencepiece(plain, texts):
    tokenizer = SentencePieceTokenizer(plain)
    assert tokenizer._segments is not None
    assert ids_of(tokenizer, texts) == [tokenizer.encode(text) for text in texts] or texts == []


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_ids_are_equal_with_a_dummy_prefix(dummy_prefix, texts):
    tokenizer = SentencePieceTokenizer(dummy_prefix)
    assert tokenizer._segments is not None
    assert ids_of(tokenizer, texts) == [tokenizer.encode(text) for text in texts] or texts == []


@pytest.fixture(scope="module")
def dummy_prefix():
    return train(add_dummy_prefix=True)


def test_no_texts_have_no_ids(plain):
    flat, lengths = SentencePieceTokenizer(plain).encode_flat([])
    assert (len(flat), len(lengths)) == (0, 0)


def test_ids_are_equal_on_real_code_while_the_table_overflows(plain, monkeypatch):
    monkeypatch.setattr(segment_cache, "_MAX_ENTRIES", 100)
    monkeypatch.setattr(segment_cache, "_BLOCK_BYTES", 4096)
    texts = [Path(json.__file__).read_text(), "", Path(sentencepiece.__file__).read_text(), *LINES]
    tokenizer = SentencePieceTokenizer(plain)
    assert ids_of(tokenizer, texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer._segments[1]._entries < 5_000


def test_pieces_across_kinds_of_characters_choose_coarser_cuts():
    classes = segment_cache.choose_classes(parse_model(train(split_by_unicode_script=False)))
    assert classes is not None
    assert classes[ord("_")] == classes[ord("a")] != classes[ord("\n")]
    model = train(split_by_unicode_script=False)
    tokenizer = SentencePieceTokenizer(model)
    assert ids_of(tokenizer, LINES) == [tokenizer.encode(text) for text in LINES]


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram", "vocab_size": 340},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False, "vocab_size": 150},
        {"treat_whitespace_as_suffix": True},
        {"split_by_whitespace": False},
        {"user_defined_symbols": ["a b"]},
    ],
)
def test_other_models_are_encoded_whole(options):
    tokenizer = SentencePieceTokenizer(train(**options))
    assert tokenizer._segments is None
    texts = ["a b  c", *LINES[:5]]
    assert ids_of(tokenizer, texts) == [tokenizer.encode(text) for text in texts]

"""The table of parts gives exactly the ids of SentencePiece, or is not used."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_fastmix.corpus.tokenizers import part_cache
from megatron_fastmix.corpus.tokenizers.part_cache import CompiledPartCache
from megatron_fastmix.corpus.tokenizers.registry import SentencePieceTokenizer
from tests.cases import slow

LINES = [
    f"{'    ' * (n % 3)}if value_{n % 9} == {n * n}: return naïve({n % 5})  # the quick brown fox"
    for n in range(400)
]


def train(**options):
    model = io.BytesIO()
    values = {
        "vocab_size": 360,
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


def with_unused_pieces(model, every=5):
    """The model with some of its normal pieces made unused (type 5, as by SetVocabulary)."""
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto.FromString(model)
    for number, piece in enumerate(proto.pieces):
        if piece.type == piece.NORMAL and len(piece.piece) > 1 and number % every == 0:
            piece.type = piece.UNUSED
    return proto.SerializeToString()


# Models that are encoded by parts; every option that may occur beside those that rule it out.
BY_PARTS = {
    "plain": {},
    "dummy prefix": {"add_dummy_prefix": True},
    "words joined to signs": {"split_by_unicode_script": False, "split_by_number": False},
    "digits apart": {"split_digits": True},
    "no pieces of spaces": {"allow_whitespace_only_pieces": False},
    "control symbols": {"control_symbols": ["<tool>", "re turn"]},
    "user-defined symbols": {
        "user_defined_symbols": ["==", "\u2581\u2581\u2581", "\u2581fox", "naïve", "()", "\t\t"]
    },
    "user-defined across kinds": {"user_defined_symbols": ["<sep>", "value_", "\u2581a1", "x."]},
}


@pytest.fixture(scope="module")
def models():
    found = {name: train(**options) for name, options in BY_PARTS.items()}
    pytest.importorskip("google.protobuf")
    found["unused pieces"] = with_unused_pieces(train())
    return found


@pytest.fixture(scope="module", params=["compiled", slow("python")])
def tokenizers(request, models):
    """Of the table in C and of the one in Python."""
    compiled = part_cache._parts
    if request.param == "compiled":
        assert compiled is not None, "the extension was not compiled; is there a C compiler?"
    else:
        part_cache._parts = None
    found = {name: SentencePieceTokenizer(model) for name, model in models.items()}
    for tokenizer in found.values():
        tokenizer.prepare()
    part_cache._parts = compiled
    return found


def ids_of(tokenizer, texts):
    flat, lengths = tokenizer.encode_flat(texts)
    assert lengths.sum() == len(flat)
    return [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])]


FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from(["value_", "  ", " ", "\n", "\t", "return", "12", "\r\n", "\0", "naïve"]),
        st.sampled_from(
            ["<sep>", "<tool>", "re turn", "==", "   ", "()", "\t\t", "a1", "x.", "<s>"]
        ),
        st.sampled_from(
            [
                "\u2581",
                "\u2581fox",
                "東京",
                "🙂",
                "👩‍👩‍👧",
                "e\u0301",
                "\u00a0",
                "\u3000",
                "\ufeff",
                "\u0085",
            ]
        ),
        st.sampled_from(
            ["x" * 15, "y" * 300, "_" * 40, " " * 33, "\n" * 5, "<0x0A>", "</s>", "<unk>"]
        ),
        st.text(max_size=6),
        st.text(alphabet="aveluf_ \n\u2581=12(ï", max_size=12),
    ),
    max_size=20,
).map("".join)
# Half a surrogate pair is no text.
TEXTS = st.lists(
    FRAGMENTS.map(lambda t: t.encode("utf-8", "ignore").decode()), min_size=1, max_size=6
)


@settings(max_examples=400)
@given(TEXTS)
@example([""])
@example(["", " ", "\u2581", "\n", " \n ", "a", ""])
def test_ids_equal_those_of_sentencepiece(tokenizers, texts):
    for name, tokenizer in tokenizers.items():
        assert tokenizer._cache is not None, name
        assert ids_of(tokenizer, texts) == [tokenizer.encode(text) for text in texts], name


def test_no_texts_have_no_ids(tokenizers):
    flat, lengths = tokenizers["plain"].encode_flat([])
    assert (len(flat), len(lengths)) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
def test_ids_are_equal_on_real_code_while_the_table_overflows(tokenizers, monkeypatch, piece):
    monkeypatch.setattr(part_cache, "GENERATION", 100)
    monkeypatch.setattr(part_cache, "PIECE", piece)
    caches = {name: tokenizer._cache for name, tokenizer in tokenizers.items()}
    for name, cache in caches.items():
        if isinstance(cache, CompiledPartCache):
            again = CompiledPartCache(
                cache.kinds,
                cache.encode_parts,
                cache.prefix,
                tokenizers[name].vocab_size,
                max_parts=100,
            )
            monkeypatch.setitem(tokenizers[name].__dict__, "_cache", again)
    files = [json.__file__, sentencepiece.__file__, st.__file__, pytest.__file__]
    texts = [Path(file).read_text() for file in files]
    texts += ["".join(map(chr, range(0xD800))), "", *LINES]
    for name, tokenizer in tokenizers.items():
        assert ids_of(tokenizer, texts) == [tokenizer.encode(text) for text in texts], name
        cache = tokenizer._cache
        if isinstance(cache, CompiledPartCache):
            assert 100 < cache.table.parts() <= 200
        else:
            assert len(cache) <= 101
            assert 0 < len(cache._older) <= 101


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("digits apart", 0), ("plain", 1), ("words joined to signs", 2), ("user-defined across", 2)],
)
def test_cuts_are_as_fine_as_the_pieces_permit(tokenizers, name, kinds):
    (found,) = [tokenizer for key, tokenizer in tokenizers.items() if key.startswith(name)]
    assert found._cache.kinds == kinds


@settings(max_examples=300)
@given(st.one_of(FRAGMENTS, st.text()))
def test_parts_make_up_the_text_and_end_only_at_cuts_that_are_checked(text):
    text = text.replace("\u2581", " ")
    for kinds in part_cache._KINDS:
        pattern, cuts = part_cache._pattern(kinds), part_cache._cuts(kinds)
        parts = pattern.findall(text)
        assert "".join(parts) == text
        for before, after in itertools.pairwise(parts):
            assert cuts.fullmatch(before[-1] + after[0])


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram", "vocab_size": 340},
        {"model_type": "char", "vocab_size": 300},
        {"normalization_rule_name": "nmt_nfkc"},
        {"normalization_rule_name": "nfkc_cf"},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False, "vocab_size": 150},
        {"treat_whitespace_as_suffix": True},
        {"split_by_whitespace": False},
        {"user_defined_symbols": ["a b"]},
        {"user_defined_symbols": ["a\u2581b"]},
        {"user_defined_symbols": ["x\n"]},
    ],
)
def test_other_models_are_encoded_whole(options):
    tokenizer = SentencePieceTokenizer(train(**options))
    assert tokenizer._cache is None
    texts = ["a b  c", *LINES[:5]]
    assert ids_of(tokenizer, texts) == [tokenizer.encode(text) for text in texts]


def test_a_model_with_unknown_ways_to_normalize_is_encoded_whole():
    # normalizer_spec {99: 1}, a field of no known version.
    tokenizer = SentencePieceTokenizer(train() + bytes([3 << 3 | 2, 3, 0x98, 0x06, 1]))
    assert tokenizer._cache is None


class TestCompiledTable:
    """What only C can get wrong."""

    KINDS = bytes(128)

    def table(self):
        return part_cache._parts.Table(self.KINDS, 4)

    def encode(self, text, answer=lambda parts: [[len(part)] for part in parts], table=None):
        ids = bytearray()
        assert (table or self.table()).encode(text, answer, ids) is None
        return np.frombuffer(ids, np.int32).tolist()

    def test_a_part_longer_than_any_buffer(self):
        long = "x" * 3_000_000
        assert self.encode("") == []
        assert self.encode(f"{long}\n{long} y") == [3_000_000, 1, 3_000_000, 2]

    def test_more_ids_than_a_generation_holds(self):
        table = self.table()
        for first in range(0, 9000, 3000):
            text = " ".join(f"w{n}" for n in range(first, first + 3000))
            ids = self.encode(text, lambda parts: [[7] * 100 for _ in parts], table)
            assert ids == [7] * 300_000

    def test_ids_of_16_bits(self):
        table = part_cache._parts.Table(self.KINDS, 2)
        ids = bytearray(b"ab")
        table.encode("one two", lambda parts: [[1, 65535], [2]], ids)
        assert ids == b"ab" + np.array([1, 65535, 2], np.uint16).tobytes()
        with pytest.raises(OverflowError, match="16 bits"):
            table.encode("three", lambda parts: [[65536]], ids)

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (lambda parts: None, TypeError),
            (lambda parts: [], TypeError),
            (lambda parts: [3 for _ in parts], TypeError),
            (lambda parts: [["a"] for _ in parts], TypeError),
            (lambda parts: [[-1] for _ in parts], OverflowError),
            (lambda parts: [[1 << 31] for _ in parts], OverflowError),
            (lambda parts: [[1 << 99] for _ in parts], OverflowError),
            (lambda parts: 1 / 0, ZeroDivisionError),
        ],
    )
    def test_a_wrong_answer_is_an_error(self, answer, error):
        table = self.table()
        with pytest.raises(error):
            self.encode("some text", answer, table)
        assert self.encode("some", lambda parts: [[5]], table) == [5]

    @pytest.mark.parametrize("text", [("a",), None, b"a", 1, "\ud800"])
    def test_what_is_no_text_is_an_error(self, text):
        with pytest.raises((TypeError, UnicodeEncodeError)):
            self.encode(text)

    def test_what_cannot_be_appended_to_is_an_error(self):
        with pytest.raises(TypeError, match="bytearray"):
            self.table().encode("a", lambda parts: [[1]], b"")
        ids = bytearray(8)
        with memoryview(ids), pytest.raises(BufferError):
            self.table().encode("a", lambda parts: [[1]], ids)
        assert ids == bytes(8)

    @pytest.mark.parametrize(
        "arguments", [(b"", 4, 1), (KINDS, 4, 0), (KINDS, 4, 1 << 17), ("a", 4, 1), (KINDS, 3)]
    )
    def test_a_table_of_impossible_size_is_refused(self, arguments):
        with pytest.raises((ValueError, TypeError)):
            part_cache._parts.Table(*arguments)

    def test_what_failed_is_asked_for_again(self):
        table = self.table()
        with pytest.raises(ZeroDivisionError):
            self.encode("a b a", lambda parts: 1 / 0, table)
        asked = []

        def answer(parts):
            asked.extend(parts)
            return [[len(part)] for part in parts]

        assert self.encode("a b a b", answer, table) == [1, 2, 2, 2]
        assert asked == ["a", " b", " a"]
        assert len(self.encode("a b a", lambda parts: 1 / 0, table)) == 3

    def test_it_is_not_entered_twice(self):
        table = self.table()
        with pytest.raises(RuntimeError):
            self.encode("a", lambda parts: table.encode("b", None, bytearray()), table)
        assert self.encode("a", lambda parts: [[4]], table) == [4]
        kind = part_cache._parts.Table
        with pytest.raises(RuntimeError):
            kind.__new__(kind).encode("a", len, bytearray())

"""Tokens that only files beside tokenizer.json have, as `transformers` adds them."""

import json
import pickle
import re

import pytest

from megatron_fastmix.corpus.documents.chat_template import read_chat_template
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import DataError
from tests.unit.test_corpus_whole_text import train_sentencepiece

START, END = "<|im_start|>", "<|im_end|>"
TEXT = f"é {START}user\nhi {END} [PAD] <turn>b"
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
DECODER = {
    "256": {"content": "<|endoftext|>", "special": True, "normalized": False},
    "257": {"content": END, "special": True, "normalized": False},
    "259": {"content": "<turn>", "special": False, "normalized": True},
    "258": {"content": START, "special": True, "normalized": False, "rstrip": True},
}


def load(folder, config=None, more=None, *, in_vocabulary=()):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *in_vocabulary]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", END)])
    backend.save(str(folder / "tokenizer.json"))
    files = {"tokenizer_config.json": PLAIN | (config or {}), **(more or {})}
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    return load_tokenizer("HuggingFaceTokenizer", str(folder))


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ({"added_tokens_decoder": DECODER}, {}),
        ({"additional_special_tokens": [START, END]}, {}),
        ({"extra_special_tokens": [START]}, {}),
        ({"extra_special_tokens": {"turn_token": START}}, {}),
        ({"model_specific_special_tokens": {"turn_token": START}}, {}),
        ({"turn_token": START}, {}),
        ({}, {"added_tokens.json": {"<turn>": 259, START: 258}}),
        ({}, {"special_tokens_map.json": {"additional_special_tokens": [START]}}),
        ({"pad_token": "[PAD]", "additional_special_tokens": [START]}, {}),
        (
            {"pad_token": "[PAD]", "added_tokens_decoder": DECODER},
            {"added_tokens.json": {"<|other|>": 258}},
        ),
    ],
)
def test_ids_are_those_of_transformers(tmp_path, config, more):
    transformers = pytest.importorskip("transformers")
    of_release_5 = config.keys() & {"model_specific_special_tokens", "turn_token"} or isinstance(
        config.get("extra_special_tokens"), list
    )
    if of_release_5 and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers reads this from release 5 on")
    before = load(tmp_path)
    tokenizer = load(tmp_path, config, more)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = reference(TEXT, add_special_tokens=False).input_ids
    assert START not in map(before.show, before.encode(TEXT))
    assert tokenizer.encode(TEXT) == expected
    assert [tokenizer.show(token) for token in expected].count(START) == 1
    assert tokenizer.vocab_size == len(reference) > before.vocab_size
    assert tokenizer.sha256 != before.sha256
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert (copy.encode(TEXT), copy.vocab_size) == (expected, tokenizer.vocab_size)


def test_a_token_of_the_vocabulary_becomes_whole(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = load(tmp_path, {"additional_special_tokens": [START]}, in_vocabulary=[START])
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode(TEXT) == reference(TEXT, add_special_tokens=False).input_ids
    assert tokenizer.show(256) == START


def test_files_that_add_nothing_leave_the_identity(tmp_path):
    before = load(tmp_path)
    known = {number: DECODER[number] for number in ("256", "257")}
    after = load(
        tmp_path,
        {"added_tokens_decoder": known, "additional_special_tokens": [END]},
        {"added_tokens.json": {END: 257}},
    )
    assert (after.sha256, after.vocab_size) == (before.sha256, before.vocab_size)
    assert after.encoding_notes == ()


@pytest.mark.parametrize(
    ("config", "more", "reason"),
    [
        ({"added_tokens_decoder": {"300": DECODER["258"]}}, {}, "with id 300, but .* id is 258"),
        ({}, {"added_tokens.json": {START: 7}}, "with id 7, but"),
        ({"added_tokens_decoder": {"x": DECODER["258"]}}, {}, "has 'x'.*expected an id"),
        ({"added_tokens_decoder": {"258": START}}, {}, "has '258'.*expected an id"),
        ({"added_tokens_decoder": [START]}, {}, "expected an object"),
        ({}, {"added_tokens.json": {START: "258"}}, "expected a token's text with its id"),
        ({"additional_special_tokens": START}, {}, "expected a list"),
        ({"extra_special_tokens": [7]}, {}, "has 7, which is no text"),
        ({"extra_special_tokens": ["\ud800"]}, {}, "half a surrogate pair"),
    ],
)
def test_what_cannot_be_added_is_an_error_that_names_the_file(tmp_path, config, more, reason):
    with pytest.raises(DataError, match=rf"(tokenizer_config|added_tokens)\.json: .*{reason}"):
        load(tmp_path, config, more)


@pytest.mark.parametrize(
    ("config", "note"),
    [
        ({"add_prefix_space": True}, r"add_prefix_space is true, but tokenizer\.json has false"),
        ({"split_special_tokens": True}, "split_special_tokens is true"),
        ({"add_prefix_space": False, "split_special_tokens": False}, None),
    ],
)
def test_settings_that_change_ids_elsewhere_are_said(tmp_path, config, note):
    notes = load(tmp_path, config).encoding_notes
    assert len(notes) == (note is not None)
    assert re.search(note or "", "".join(notes))


def test_a_template_is_given_the_tokens_that_have_names(tmp_path):
    transformers = pytest.importorskip("transformers")
    load(tmp_path, {"extra_special_tokens": {"turn_token": START, "other": "<turn>"}})
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ turn_token }}{{ m.content }}{{ other }}{% endfor %}"
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = reference.apply_chat_template(turns, tokenize=False)
    template = read_chat_template(tmp_path)
    assert template.render(turns)[0] == expected == f"{START}a<turn>{START}b<turn>"
    assert template.undefined_tokens == []


def test_tokens_beside_a_sentencepiece_model_are_said(tmp_path):
    options = {"model_type": "bpe", "user_defined_symbols": [START]}
    train_sentencepiece(tmp_path, **options)

    def notes(values):
        (tmp_path / "added_tokens.json").write_text(values)
        return load_tokenizer("SentencePieceTokenizer", str(tmp_path / "m.model")).encoding_notes

    assert notes(json.dumps({START: 3, "<unk>": 0, "</s>": 2})) == ()
    assert notes("{damaged") == ()  # nothing is read from it
    (note,) = notes(json.dumps({END: 330, START: 3}))
    assert f"added_tokens.json: '{END}': no piece of m.model" in note


def test_another_end_token_beside_files_that_have_their_own_is_said(tmp_path):
    train_sentencepiece(tmp_path, model_type="bpe", user_defined_symbols=[END])
    (tmp_path / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, END: 1, "a": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")

    def notes(kind, name, end, **options):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
        return load_tokenizer(kind, str(tmp_path / name), **options).notes

    for kind, name, own, number in (
        ("SentencePieceTokenizer", "m.model", "</s>", 2),
        ("GPT2BPETokenizer", "vocab.json", "<|endoftext|>", 0),
    ):
        (note,) = notes(kind, name, END)
        assert f"eos_token is '{END}', but documents end with '{own}' (id {number})" in note
        assert notes(kind, name, own) == notes(kind, name, "<nowhere>") == ()
        assert notes(kind, name, END, eod=number) == ()  # it is stated

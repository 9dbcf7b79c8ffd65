"""Special tokens come from the files beside a tokenizer, and a guess is said."""

import json
import random
import re

import pytest

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.documents.chat_template import read_chat_template
from megatron_fastmix.corpus.documents.records import RecordParser
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, DataError, FastMixError

SPECIAL = ["<|endoftext|>", "<s>", "<|end|>", "<pad>"]


@pytest.fixture(scope="module")
def tokenizer_json():
    from tokenizers import Tokenizer, models, trainers

    backend = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(["a b c"], trainer)
    return backend.to_str()


def load(folder, tokenizer_json, **files):
    (folder / "tokenizer.json").write_text(tokenizer_json)
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return load_tokenizer("HuggingFaceTokenizer", str(folder))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"eos_token": "<|end|>"}},
        {"tokenizer_config": {"eos_token": {"content": "<|end|>", "lstrip": False}}},
        {"special_tokens_map": {"eos_token": {"content": "<|end|>"}}},
        {"tokenizer_config": {"eos_token": None}, "special_tokens_map": {"eos_token": "<|end|>"}},
        {"generation_config": {"eos_token_id": 2}},
        {"generation_config": {"eos_token_id": [2, 0]}, "config": {"eos_token_id": 0}},
        {"generation_config": {}, "config": {"eos_token_id": 2}},
        {"config": {"text_config": {"eos_token_id": 2}}},
        {
            "tokenizer_config": {"eos_token": "<|end|>", "add_eos_token": True},
            "generation_config": {"eos_token_id": 0},
        },
    ],
)
def test_the_end_token_is_the_one_that_a_file_names(tmp_path, tokenizer_json, files):
    tokenizer = load(tmp_path, tokenizer_json, **files)
    assert tokenizer.eod == 2
    assert tokenizer.notes == ()
    assert tokenizer.template_tokens["eos_token"] == "<|end|>"


@pytest.mark.parametrize(("listed", "eod"), [(None, 1), ({}, 2)])
def test_of_two_files_that_disagree_the_one_of_transformers_is_taken(
    tmp_path, tokenizer_json, listed, eod
):
    transformers = pytest.importorskip("transformers")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    config |= {} if listed is None else {"added_tokens_decoder": listed}
    tokenizer = load(
        tmp_path,
        tokenizer_json,
        tokenizer_config=config,
        special_tokens_map={"eos_token": "<s>"},
        generation_config={"eos_token_id": 0},
    )
    assert tokenizer.eod == eod
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).eos_token_id == eod
    (note,) = tokenizer.encoding_notes
    assert "eos_token is '<" in note and "make them agree" in note


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        (
            "tokenizer_config",
            {"eos_token": "<|return|>"},
            r"'<\|return\|>' as eos_token, which is no",
        ),
        ("special_tokens_map", {"eos_token": "x y"}, "'x y' as eos_token, which is no token"),
        ("generation_config", {"eos_token_id": 999}, "999 as eos_token_id, which is no id"),
        ("config", {"eos_token_id": -1}, "-1 as eos_token_id, which is no id"),
        ("tokenizer_config", {"eos_token": 7}, "eos_token is 7, which is no text"),
        ("tokenizer_config", [], "expected a JSON object, found list"),
        ("config", 3, "expected a JSON object, found int"),
    ],
)
def test_a_name_that_is_no_token_is_refused(tmp_path, tokenizer_json, name, values, reason):
    with pytest.raises(DataError, match=rf"{name}\.json.*{reason}"):
        load(tmp_path, tokenizer_json, **{name: values})


def test_an_end_token_that_is_stated_needs_no_name(tmp_path, tokenizer_json):
    nameless = tokenizer_json.replace("<|endoftext|>", "<|other|>")
    with pytest.raises(DataError, match=r"no end-of-document token found.*\(--eod\)"):
        load(tmp_path, nameless)
    tokenizer = load_tokenizer("HuggingFaceTokenizer", str(tmp_path), eod=2)
    assert (tokenizer.eod, tokenizer.template_tokens["eos_token"]) == (2, "<|end|>")
    past = load_tokenizer("HuggingFaceTokenizer", str(tmp_path), eod=99)
    assert (past.eod, past.vocab_size) == (99, 100)
    assert "eos_token" not in past.template_tokens  # a template would write a text in its place


def test_a_guess_is_said(tmp_path, tokenizer_json):
    assert load(tmp_path, tokenizer_json).eod == 0
    (tmp_path / "in.jsonl").write_text('{"text": "a b"}\n')
    dataset = DatasetConfig(prefix=str(tmp_path / "out"), input=(str(tmp_path / "in.jsonl"),))
    config = PreprocessConfig(
        tokenizer=TokenizerConfig(
            tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(tmp_path)
        ),
        datasets=(dataset,),
        workers=1,
    )
    said = []
    preprocess(config, said.append)
    assert re.search(r"<\|endoftext\|> \(id 0\) is taken for it, a guess", said[0])


def test_a_template_that_names_unknown_tokens_is_said(tmp_path, tokenizer_json):
    load(tmp_path, tokenizer_json, tokenizer_config={"eos_token": "<|end|>"})
    other = tmp_path / "other"  # model, whose tokens this tokenizer does not have
    other.mkdir()
    (other / "tokenizer_config.json").write_text('{"sep_token": "~~"}')
    (other / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ cls_token }}{{ m.content }}{{ eos_token }}{{ sep_token }}"
        "{% endfor %}"
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    config = PreprocessConfig(
        tokenizer=TokenizerConfig(
            tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(tmp_path)
        ),
        datasets=(
            DatasetConfig(
                prefix=str(tmp_path / "out"),
                input=(str(tmp_path / "in.jsonl"),),
                record_type="messages",
                chat_template=str(other),
            ),
        ),
        append_eod=False,
        workers=1,
    )
    said = []
    preprocess(config, said.append)
    assert any("names cls_token" in line and "written as nothing" in line for line in said)
    assert any("sep_token is '~~', no token of the tokenizer" in line for line in said)


def test_a_folder_is_accepted_where_the_file_is(tmp_path, tokenizer_json):
    whole = load(tmp_path, tokenizer_json, config={"eos_token_id": 2})
    file = load_tokenizer("HuggingFaceTokenizer", str(tmp_path / "tokenizer.json"))
    assert (file.sha256, file.eod) == (whole.sha256, whole.eod)
    with pytest.raises(ConfigError, match=r"holds none of .*; it holds tokenizer\.json: use"):
        load_tokenizer("SentencePieceTokenizer", str(tmp_path))


FILES = {
    "tokenizer_config.json": json.dumps(
        {
            "eos_token": {"content": "<|end|>"},
            "add_bos_token": True,
            "pad_token": None,
            "chat_template": "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
            "{% if tools is defined %}{{ tools | tojson(indent=2) }}{% endif %}",
        }
    ),
    "added_tokens.json": '{"<|more|>": 12, "<|most|>": 13}',
    "special_tokens_map.json": '{"eos_token": "<|end|>", "pad_token": "<pad>"}',
    "generation_config.json": '{"eos_token_id": [2, 0], "bos_token_id": 1}',
    "chat_template.jinja": "{% for m in messages %}{% generation %}{{ m.content | trim }}"
    "{% endgeneration %}{%- if not loop.last %}{{ raise_exception('x') }}{% endif %}{% endfor %}",
}
VALUES = [
    "null",
    "-1",
    "[]",
    "{}",
    '""',
    "9" * 5000,
    "[" * 20000,
    "{%",
    "}}",
    "{{",
    '"\\ud800"',
    "3",
]


def mutated(content, chance):
    data = bytearray(content.encode())
    for _ in range(chance.randint(1, 3)):
        at, kind = chance.randrange(len(data) + 1), chance.randrange(5)
        if kind == 0:
            del data[at : at + chance.randint(1, 20)]
        elif kind == 1:
            data[at:at] = bytes([chance.randrange(256)])
        elif kind == 2:
            data[at:] = b""
        else:
            places = list(re.finditer(rb'"[^"]*"|\d+|true|null', bytes(data)))
            if places:
                place = chance.choice(places)
                data[place.start() : place.end()] = chance.choice(VALUES).encode()
    return bytes(data)


@pytest.mark.parametrize("damaged", FILES)
def test_damaged_files_are_errors_that_name_them(tmp_path, tokenizer_json, damaged):
    chance, refused = random.Random(damaged), 0
    line = b'{"messages": [{"role": "assistant", "content": "b"}], "tools": [{"name": "c"}]}'
    for _ in range(120):
        (tmp_path / "tokenizer.json").write_text(tokenizer_json)
        for name, content in FILES.items():
            (tmp_path / name).unlink(missing_ok=True)
            if chance.random() < 0.5:
                (tmp_path / name).write_text(content)
        (tmp_path / damaged).write_bytes(mutated(FILES[damaged], chance))
        tokens = {}
        try:
            tokens = load_tokenizer("HuggingFaceTokenizer", str(tmp_path)).template_tokens
        except FastMixError as error:
            refused += 1
            assert damaged in str(error)
        try:
            template = read_chat_template(tmp_path, tokens)
        except FastMixError as error:
            refused += 1
            assert str(tmp_path) in str(error)
            continue
        try:
            RecordParser(record_type="messages", chat_template=template)(line, "jsonl")
        except ValueError as error:
            assert str(error)
    assert refused > 10

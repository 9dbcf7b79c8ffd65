"""Kinds of records with answers: the usual keys, other keys, and what each becomes."""

import json

import pytest

from megatron_fastmix.cli.main import main
from megatron_fastmix.corpus.documents.chat_template import ChatTemplate
from megatron_fastmix.corpus.documents.records import RecordParser
from megatron_fastmix.corpus.preprocess_config import DatasetConfig
from megatron_fastmix.errors import ConfigError
from tests.unit.test_corpus_answer_only import learned

NEMO = {
    "system": "Be kind.",
    "mask": "User",
    "conversations": [{"from": "User", "value": "Hi"}, {"from": "Assistant", "value": "Ho"}],
}
TEMPLATE = ChatTemplate(
    source="{% for t in tools or [] %}[{{ t.name }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def parts(record, record_type, template=None, **options):
    parser = RecordParser(record_type=record_type, chat_template=template, **options)
    document = parser(json.dumps(record).encode(), "jsonl")
    answers = [p for p, flag in zip(document.parts, document.in_loss, strict=True) if flag]
    return "".join(document.parts), answers


ALPACA = {"instruction": "Add.", "input": "1 1", "output": "2"}
SHAREGPT = {
    "system": "Be kind.",
    "tools": '[{"name": "clock"}]',
    "conversations": [
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'},
        {"from": "observation", "value": "12"},
        {"from": "gpt", "value": "Noon"},
    ],
}


@pytest.mark.parametrize("key", ["tools", "documents", "functions"])
@pytest.mark.parametrize(
    ("record", "record_type"),
    [
        (ALPACA, "alpaca"),
        ({"question": "q", "answer": "a"}, "question_answer"),
        ({"prompt": "q", "completion": "a"}, "prompt_completion"),
    ],
)
def test_tools_of_a_pair_are_not_left_out_in_silence(record, record_type, key):
    with pytest.raises(ValueError, match=f"'{key}', which needs a chat template"):
        parts(record | {key: [{"name": "clock"}]}, record_type)
    assert parts(record | {key: []}, record_type) == parts(record, record_type)


@pytest.mark.parametrize(
    ("record", "record_type", "template", "text", "answers"),
    [
        (ALPACA, "alpaca", None, "Add.\n1 1\n2", ["2"]),
        (ALPACA | {"input": ""}, "alpaca", None, "Add.\n2", ["2"]),
        ({"instruction": "Go", "output": "2"}, "alpaca", None, "Go\n2", ["2"]),
        (ALPACA, "alpaca", TEMPLATE, "<user>Add.\n1 1;<assistant>2;", ["2;"]),
        (
            ALPACA | {"system": "S", "history": [["a", "b"]]},
            "alpaca",
            TEMPLATE,
            "<system>S;<user>a;<assistant>b;<user>Add.\n1 1;<assistant>2;",
            ["b;", "2;"],
        ),
        (
            ALPACA | {"system": "S"},
            "alpaca",
            None,
            "system: S\nuser: Add.\n1 1\nassistant: 2",
            ["2"],
        ),
        (
            {"question": "q", "answer": "a"},
            "question_answer",
            TEMPLATE,
            "<user>q;<assistant>a;",
            ["a;"],
        ),
        (
            {"prompt": "q", "completion": "a"},
            "prompt_completion",
            TEMPLATE,
            "<user>q;<assistant>a;",
            ["a;"],
        ),
        (
            {
                "prompt": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "old"},
                    {"role": "user", "content": "r"},
                ],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            "prompt_completion",
            TEMPLATE,
            "<user>q;<assistant>old;<user>r;<assistant>a;",
            ["a;"],
        ),
        (
            SHAREGPT,
            "sharegpt",
            TEMPLATE,
            '[clock]<system>Be kind.;<user>Hi;<assistant>{"name": "clock", "arguments": {}};'
            "<tool>12;<assistant>Noon;",
            ['{"name": "clock", "arguments": {}};', "Noon;"],
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            "sharegpt",
            None,
            "user: Hi\nassistant: Ho",
            ["Ho"],
        ),
        (
            NEMO,
            "sharegpt",
            None,
            "system: Be kind.\nuser: Hi\nassistant: Ho",
            ["Ho"],
        ),
    ],
)
def test_what_a_record_becomes(record, record_type, template, text, answers):
    assert parts(record, record_type, template) == (text, answers)


MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SAID = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("record", "record_type"),
    [
        ({"messages": MESSAGES}, "messages"),
        ({"question": "q", "answer": "a"}, "question_answer"),
        ({"prompt": "q", "completion": "a"}, "prompt_completion"),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, "prompt_completion"),
        ({"prompt": MESSAGES[:1], "completion": "a"}, "prompt_completion"),
        ({"instruction": "q", "output": "a"}, "alpaca"),
        ({"conversations": SAID}, "sharegpt"),
    ],
)
def test_the_system_text_of_a_record_is_its_first_turn(record, record_type):
    record = record | {"system": "S"}
    assert parts(record, record_type) == ("system: S\nuser: q\nassistant: a", ["a"])
    turns = ("<system>S;<user>q;<assistant>a;", ["a;"])
    assert parts(record, record_type, TEMPLATE) == turns
    own = ChatTemplate(source="{{ system }}|" + TEMPLATE.source)
    assert parts(record, record_type, own) == ("S|<user>q;<assistant>a;", ["a;"])
    assert parts(record | {"system": ""}, record_type, TEMPLATE)[0] == "<user>q;<assistant>a;"
    with pytest.raises(ValueError, match="'system' is int, not the text of a system turn"):
        parts(record | {"system": 3}, record_type)


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize(
    ("record", "record_type"),
    [
        ({"messages": MESSAGES}, "messages"),
        ({"conversations": SHAREGPT["conversations"][::3]}, "sharegpt"),
    ],
)
def test_a_conversation_may_be_json_text(record, record_type, template):
    as_text = {key: json.dumps(value) for key, value in record.items()}
    assert parts(as_text, record_type, template) == parts(record, record_type, template)


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize(
    ("record", "record_type"),
    [({"messages": MESSAGES}, "messages"), (ALPACA, "alpaca")],
)
def test_images_are_not_left_out_in_silence(record, record_type, template):
    for key in ("image", "images", "videos"):
        with pytest.raises(ValueError, match=f"the record has '{key}', and this learns from text"):
            parts(record | {key: ["a.png"]}, record_type, template)
        plain = parts(record, record_type, template)
        assert parts(record | {key: []}, record_type, template) == plain
        for nothing in ([None], [""], {"bytes": None, "path": None}, float("nan")):
            assert parts(record | {key: nothing}, record_type, template) == plain
    # What no text refers to is metadata; what one does is not.
    assert parts(record | {"image": "https://a.b/small.png"}, record_type, template) == plain
    turns = [{"role": "user", "content": "q", "images": ["eA=="]}, MESSAGES[-1]]
    with pytest.raises(ValueError, match="message 1 has 'images', and this learns from text"):
        parts({"messages": turns}, "messages", template)
    asked = {"instruction": "q <image>", "output": "a", "image": "a.png"}
    with pytest.raises(ValueError, match="the record has 'image'"):
        parts(asked, "alpaca")
    pair = {"image": "a map", "answer": "a"}  # where it is the text
    assert parts(pair, "question_answer", json_keys=("image", "answer")) == ("a map\na", ["a"])
    pair = {"image": {"question": "a map", "answer": "a"}}
    keys = ("image.question", "image.answer")
    assert parts(pair, "question_answer", json_keys=keys) == ("a map\na", ["a"])


@pytest.mark.parametrize("content", ["S", [{"type": "text", "text": "S"}]])
def test_a_system_turn_is_not_doubled(content):
    messages = [{"role": "system", "content": content}, *MESSAGES]
    record = {"messages": messages, "system": "S"}
    assert parts(record, "messages") == ("system: S\nuser: q\nassistant: a", ["a"])
    with pytest.raises(ValueError, match="message 1 is a system turn of another text; remove"):
        parts(record | {"system": "T"}, "messages")


def test_a_key_that_the_record_type_names_is_no_system_turn():
    record = {"system": {"q": "q"}, "a": "a"}
    assert parts(record, "question_answer", json_keys=("system.q", "a")) == ("q\na", ["a"])


@pytest.mark.parametrize(
    ("record", "record_type", "reason"),
    [
        ({"conversations": []}, "sharegpt", "not empty"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "sharegpt", "from 'robot'"),
        ({"conversations": [{"value": "x"}]}, "sharegpt", "no key 'from'"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "sharegpt", "is int"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "sharegpt", "no message of the ass"),
        (
            {"conversations": [{"from": "function_call", "value": "x"}]},
            "sharegpt",
            "no JSON of name",
        ),
        ({"instruction": "x", "input": "", "output": " "}, "alpaca", "'output' is empty"),
        ({"instruction": "x", "input": ""}, "alpaca", "no key 'output'"),
        (ALPACA | {"history": ["x"]}, "alpaca", "history must be"),
        (NEMO | {"mask": "System,Assistant"}, "sharegpt", "mask is 'System,Assistant', but the as"),
        (SHAREGPT, "sharegpt", "which needs a chat template"),
        ({"messages": "Hi"}, "messages", "'messages' is text, but no JSON"),
        ({"messages": ""}, "messages", "must be a list"),
        (
            {"messages": [{"role": "assistant", "content": "\n"}]},
            "messages",
            "every answer to be learned is empty",
        ),
    ],
)
def test_records_that_lack_something_are_refused(record, record_type, reason):
    with pytest.raises(ValueError, match=reason):
        parts(record, record_type)


def test_other_keys_are_named_in_order():
    record = {"q": {"text": "1+1?"}, "a": "2", "note": ""}
    keys = ("q.text", "a")
    assert parts(record, "question_answer", json_keys=keys) == ("1+1?\n2", ["2"])
    keys = ("q.text", "note", "a")
    assert parts(record, "alpaca", json_keys=keys) == ("1+1?\n2", ["2"])
    chat = {"chat": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    assert parts(chat, "sharegpt", json_key="chat")[1] == ["Ho"]
    columns = RecordParser(record_type="question_answer", json_keys=("q.text", "a")).columns
    assert {"q", "q.text", "a"} <= set(columns)


@pytest.mark.parametrize(
    ("record_type", "keys", "reason"),
    [
        ("question_answer", ("q",), "the 2 keys that stand for question, answer"),
        ("alpaca", ("q", "a"), "the 3 keys that stand for instruction, input, output"),
        ("messages", ("q", "a"), "has one key, json_key"),
    ],
)
def test_a_wrong_number_of_keys_is_refused(record_type, keys, reason):
    with pytest.raises(ConfigError, match=reason):
        DatasetConfig(prefix="x", input=("y",), record_type=record_type, json_keys=keys)


def test_the_command_line_takes_keys(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"q": "1+1?", "a": "2"}\n')
    arguments = ["preprocess", "--input", str(path), "--output-prefix", str(tmp_path / "x")]
    arguments += ["--tokenizer-type", "ByteLevelTokenizer", "--workers", "1", "--append-eod"]
    flags = ["--record-type", "question_answer", "--json-keys", "q", "a"]
    assert main([*arguments, *flags]) == 0
    assert learned(tmp_path / "x_text_document") == [("2$", "1+1?\n2$")]

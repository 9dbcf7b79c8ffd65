"""Content as a list of parts: its text is learned, never Python's way of printing a list."""

import json

import pytest

from megatron_fastmix.corpus.documents.chat_template import ChatTemplate
from megatron_fastmix.corpus.documents.records import RecordParser
from tests.unit.templates_of_transformers import rendered

ASK = "{% if add_generation_prompt %}<assistant>{% endif %}"
TAKES_PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}</s>{% endfor %}" + ASK
)
TAKES_TEXT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}" + ASK
ADDS_TEXT = "{% for m in messages %}<{{ m.role }}>{{ m.content + '</s>' }}{% endfor %}" + ASK
TRIMS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}" + ASK
USERS_PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% else %}{{ m.content }}{% endif %}</s>"
    "{% endfor %}" + ASK
)
FIRST_PART = "{% for m in messages %}<{{ m.role }}>{{ m.content[0].text }}</s>{% endfor %}" + ASK


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


RECORD = {
    "messages": [
        {"role": "user", "content": parts("It's ", "one")},
        {"role": "assistant", "content": parts("Or ", "two")},
    ]
}


def parse(record, source):
    template = ChatTemplate(source=source) if source else None
    parser = RecordParser(record_type="messages", chat_template=template)
    return parser(json.dumps(record).encode(), "jsonl")


def learned(document):
    return [part for part, flag in zip(document.parts, document.in_loss, strict=True) if flag]


@pytest.mark.parametrize("source", [TAKES_PARTS, TAKES_TEXT, ADDS_TEXT, TRIMS, USERS_PARTS])
def test_parts_become_their_text_whatever_the_template_expects(source):
    document = parse(RECORD, source)
    assert "".join(document.parts) == "<user>It's one</s><assistant>Or two</s>"
    assert learned(document) == ["Or two</s>"]


def test_a_template_that_takes_parts_renders_as_in_transformers():
    source = TAKES_PARTS.replace("{{ p.text }}", "{{ p.text }}|")
    expected = rendered(source, RECORD["messages"])
    assert "".join(parse(RECORD, source).parts) == expected
    assert "It's |one|" in expected


def test_parts_are_joined_without_a_template():
    document = parse(RECORD, None)
    assert "".join(document.parts) == "user: It's one\nassistant: Or two"
    assert learned(document) == ["Or two"]


@pytest.mark.parametrize("source", [TAKES_PARTS, TAKES_TEXT, ADDS_TEXT, TRIMS])
def test_no_part_is_no_text(source):
    turns = [{"role": "system", "content": []}, *RECORD["messages"]]
    document = parse({"messages": turns}, source)
    assert "".join(document.parts) == "<system></s><user>It's one</s><assistant>Or two</s>"


def test_a_call_may_have_no_part():
    source = TAKES_TEXT.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls }}")
    call = {"role": "assistant", "content": [], "tool_calls": [{"name": "clock"}]}
    document = parse({"messages": [RECORD["messages"][0], call]}, source)
    assert learned(document) == ["[{'name': 'clock'}]</s>"]


def test_a_part_that_the_template_drops_is_told():
    with pytest.raises(ValueError, match=r"leaves out the content of message 1 \(user\)"):
        parse(RECORD, FIRST_PART)


@pytest.mark.parametrize("source", [TAKES_PARTS, TAKES_TEXT, None])
@pytest.mark.parametrize(
    "part", [{"type": "image", "image": "a.png"}, {"type": "image_url", "image_url": {}}, "text"]
)
def test_a_part_that_is_no_text_is_refused(source, part):
    record = {"messages": [{"role": "user", "content": [*parts("See"), part]}, *RECORD["messages"]]}
    with pytest.raises(ValueError, match="message 1: the content has a part that is no text"):
        parse(record, source)

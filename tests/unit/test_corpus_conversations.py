"""Conversations: nothing of a record is lost silently, and only answers are learned."""

import json

import pytest

from megatron_fastmix.corpus.documents.chat_template import ChatTemplate
from megatron_fastmix.corpus.documents.records import RecordParser
from tests.unit.templates_of_transformers import rendered

TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for d in documents or [] %}[{{ d.title }}]{% endfor %}{{ style }}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {}}}


def parse(record, source=TEMPLATE, record_type="messages", **options):
    template = ChatTemplate(source=source) if source else None
    parser = RecordParser(record_type=record_type, chat_template=template, **options)
    return parser(json.dumps(record).encode(), "jsonl")


def learned(document):
    return [part for part, flag in zip(document.parts, document.in_loss, strict=True) if flag]


def test_what_the_template_asks_for_comes_from_the_record():
    record = {
        "messages": [USER, ANSWER],
        "tools": [TOOL],
        "documents": [{"title": "News"}],
        "style": "short",
        "id": 7,
    }
    expected = rendered(
        TEMPLATE,
        record["messages"],
        **{key: record[key] for key in ("tools", "documents", "style")},
    )
    document = parse(record)
    assert "".join(document.parts) == expected
    assert expected.startswith('<tools>{"type"')
    assert learned(document) == ["Hello</s>"]
    as_text = record | {"tools": json.dumps([TOOL])}  # as Parquet files often hold them
    assert parse(as_text) == document
    kwargs = {"xml_tools": ["<f>"], "python_tools": []}  # as smoltalk2 has them
    named = parse(record | {"chat_template_kwargs": kwargs}, TEMPLATE + "{{ xml_tools }}")
    assert "".join(named.parts) == f"{expected}['<f>']"
    assert parse(record | {"tools": None, "documents": []}) == parse(
        {"messages": [USER, ANSWER], "style": "short"}
    )


@pytest.mark.parametrize(
    ("changes", "source", "reason"),
    [
        ({"tools": [TOOL]}, None, "'tools', which needs a chat template"),
        ({"documents": [{"a": 1}]}, None, "'documents', which needs a chat template"),
        ({"chat_template_kwargs": {"xml_tools": ["f"]}}, None, "'xml_tools', which needs a chat"),
        ({"python_tools": ["def f():"]}, TEMPLATE, "'python_tools', for which the chat template"),
        ({"chat_template_kwargs": {"tools": [TOOL]}}, None, "the record has 'tools', which needs"),
        ({"messages": [USER | {"tools": [TOOL]}, ANSWER]}, None, "message 1 has 'tools', which ne"),
        ({"functions": [TOOL]}, TEMPLATE, "'functions', for which the chat template has no place"),
        ({"tools": [TOOL]}, "{{ messages[1].content }}", "'tools', for which the chat template"),
        (
            {"tools": [TOOL]},
            "{% if tools %}Use tools.{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
            "leaves out the tool 'clock'",
        ),
        ({"tools": "{not json"}, TEMPLATE, "'tools' is text, but no JSON"),
    ],
)
def test_what_has_no_place_is_refused(changes, source, reason):
    with pytest.raises(ValueError, match=reason):
        parse({"messages": [USER, ANSWER], **changes}, source)


@pytest.mark.parametrize("outer", [{"id": 7}, {"tools": None, "system": ""}])
def test_what_stands_beside_nested_messages_counts(outer):
    inner = {"messages": [USER, ANSWER], "tools": [TOOL], "system": "Be kind."}
    document = parse(outer | {"request": inner}, json_key="request.messages")
    assert document == parse(inner)
    assert "".join(document.parts).startswith('<tools>{"type"')
    with pytest.raises(ValueError, match="'tools', which needs a chat template"):
        parse({"request": inner}, None, json_key="request.messages")
    pair = {"q": "x", "a": "y", "images": ["a.png"]}
    with pytest.raises(ValueError, match="the record has 'images'"):
        parse({"body": pair}, None, "question_answer", json_keys=("body.q", "body.a"))


USER_AND_ASSISTANT = (
    "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}{{ m.role }}:{{ m.content }}\n"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"role": "system", "content": "Hi"}, r"content of message 1 \(system\)"),
        ({"role": "developer", "content": "Hello"}, r"content of message 1 \(developer\)"),
        ({"role": "tool", "content": "12:00"}, r"content of message 1 \(tool\)"),
        ({"role": "assistant", "tool_calls": [CALL]}, r"'tool_calls' of message 1 \(assistant\)"),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "b"},
            r"'reasoning_content' of message 1",
        ),
        ({"role": "assistant", "content": "a", "tool_plan": "b"}, r"'tool_plan' of message 1"),
    ],
)
def test_turns_that_the_template_leaves_out_are_refused(turn, reason):
    with pytest.raises(ValueError, match=f"leaves out .*{reason}"):
        parse({"messages": [turn, USER, ANSWER]}, USER_AND_ASSISTANT)


def test_of_two_system_turns_and_two_calls_none_is_lost():
    first = (
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
        "{% for m in messages if m.role != 'system' %}{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls[0] | tojson }}{% endif %}{% endfor %}"
    )
    system = {"role": "system", "content": "Be kind."}
    assert learned(parse({"messages": [system, USER, ANSWER]}, first)) == ["Hello"]
    with pytest.raises(ValueError, match=r"content of message 2 \(system\)"):
        parse({"messages": [system, system, USER, ANSWER]}, first)
    calls = {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}
    with pytest.raises(ValueError, match="leaves out a call"):
        parse({"messages": [USER, calls]}, first)


def test_templates_may_change_texts_and_know_other_roles():
    loud = "{% for m in messages %}{{ m.role }}:{{ m.content | trim | upper }};{% endfor %}"
    turns = [{"role": "critic", "content": " Well. "}, USER, ANSWER]
    assert learned(parse({"messages": turns}, loud)) == ["assistant:HELLO;"]


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_a_call_needs_no_content(content):
    turn = {"role": "assistant", "tool_calls": [CALL], **content}
    result = {"role": "tool", "content": "12:00"}
    source = TEMPLATE.replace("{{ m.content }}", "{{ m.content or '' }}")
    document = parse({"messages": [USER, turn, result, ANSWER]}, source)
    assert learned(document) == [json.dumps(CALL) + "</s>", "Hello</s>"]
    with pytest.raises(ValueError, match="'tool_calls', which needs a chat template"):
        parse({"messages": [USER, turn, result, ANSWER]}, None)


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
@pytest.mark.parametrize("arguments", [{"zone": "Oslo"}, '{"zone": "Oslo"}'])
def test_the_template_may_join_the_content_of_a_call(content, arguments):
    source = TEMPLATE.replace("{{ m.content }}", "{{ m.content + '!' }}").replace(
        "{{ c | tojson }}",
        "{{ c.function.name }}{{ c.function.arguments | items | map('join') | join }}",
    )
    call = {"type": "function", "function": {"name": "clock", "arguments": arguments}}
    turn = {"role": "assistant", "tool_calls": [call], **content}
    assert learned(parse({"messages": [USER, turn]}, source)) == ["!clockzoneOslo</s>"]


@pytest.mark.parametrize("test", ["m.content is defined", "'content' in m"])
def test_a_template_may_ask_whether_a_call_has_content(test):
    source = TEMPLATE.replace(
        "{{ m.content }}", "{% if " + test + " %}{{ m.content + '!' }}{% else %}none{% endif %}"
    )
    turn = {"role": "assistant", "tool_calls": [CALL]}
    for given in (turn, turn | {"content": None}):
        assert learned(parse({"messages": [USER, given]}, source)) == [
            f"none{json.dumps(CALL)}</s>"
        ]


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"role": "assistant"}, "no key 'content'"),
        ({"role": "assistant", "content": None}, "'content' is null"),
        ({"role": "user", "tool_calls": [CALL]}, "no key 'content'"),
        ({"content": "x"}, "no key 'role'"),
        ({"role": "user", "content": 3}, "is int, not text"),
        ({"role": "user", "content": [{"type": "image"}]}, "a part that is no text"),
    ],
)
def test_turns_that_say_nothing_are_refused(turn, reason):
    with pytest.raises(ValueError, match=reason):
        parse({"messages": [turn, USER, ANSWER]})


def test_a_template_that_marks_nothing_is_refused():
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{% generation %}{% endgeneration %}"
    with pytest.raises(ValueError, match="marks no answer"):
        parse({"messages": [USER, ANSWER]}, source)


@pytest.mark.parametrize("text", ["</s>", "a</s>b", "</s></s>", "x </ s>"])
def test_control_tokens_are_those_of_the_template_not_of_the_text(text):
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"is {text}"}]
    document = parse({"messages": turns}, control_tokens=("</s>", "<s>"))
    whole = "".join(document.parts)
    assert whole == f"<user>{text}</s><assistant>is {text}</s>"
    first = len(f"<user>{text}")
    assert document.controls == ((first, first + 4), (len(whole) - 4, len(whole)))


def test_a_template_that_counts_characters_of_control_tokens_is_refused():
    source = TEMPLATE.replace("{{ m.content }}", "{{ m.content }}{{ m.content | length }}")
    assert learned(parse({"messages": [USER, ANSWER]}, source, control_tokens=("</s>",)))
    with pytest.raises(ValueError, match="takes it apart"):
        parse(
            {"messages": [{**USER, "content": "a</s>b"}, ANSWER]}, source, control_tokens=("</s>",)
        )


GENERATION = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("source", [None, TEMPLATE, GENERATION])
@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"loss_mask": 0}]
)
def test_an_answer_that_its_record_marks_is_context_alone(source, mark):
    first, last = ANSWER | {"content": "First"}, ANSWER | {"content": "Last"}
    key = next(iter(mark))
    plain = parse({"messages": [USER, first, USER, last]}, source)
    marked = parse({"messages": [USER, first | mark, USER, last | {key: True}]}, source)
    assert "".join(marked.parts) == "".join(plain.parts)
    assert [text.removesuffix("</s>") for text in learned(marked)] == ["Last"]
    with pytest.raises(ValueError, match="no message of the assistant is to be learned"):
        parse({"messages": [USER, first | mark]}, source)


def test_a_mark_of_another_value_is_refused_and_one_of_sharegpt_is_known():
    with pytest.raises(ValueError, match=r"message 2: 'weight' is 0\.5"):
        parse({"messages": [USER, ANSWER | {"weight": 0.5}]})
    said = [("human", "Hi", {}), ("gpt", "No", {"train": False}), ("gpt", "Yes", {})]
    turns = [{"from": who, "value": text, **mark} for who, text, mark in said]
    document = parse({"conversations": turns}, None, "sharegpt")
    assert learned(document) == ["Yes"]


def test_marks_are_refused_where_the_template_does_not_tell_the_answers_apart():
    source = GENERATION.replace("{{ m.content }}</s>{% endgen", "{% endgen", 1)
    source = source.replace(
        "{% generation %}",
        "{% generation %}{{ m.content }}{% endgeneration %}{% generation %}</s>",
        1,
    )
    with pytest.raises(ValueError, match="marks 4 answers for 2 messages of the assistant"):
        parse({"messages": [USER, ANSWER | {"weight": 0}, USER, ANSWER]}, source)

"""Tools and their calls in the forms that data sets have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_fastmix.corpus.documents.chat_template import ChatTemplate
from megatron_fastmix.corpus.documents.conversations import conversation_document
from megatron_fastmix.corpus.documents.records import RecordParser
from megatron_fastmix.corpus.reading.readers import iter_chunks

FUNCTION = {"name": "sky", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}
ASKED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TOOLS = ChatTemplate(
    source="{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
)


def text(record: dict[str, Any], template: ChatTemplate = TOOLS) -> str:
    return "".join(conversation_document(record["messages"], record, template).parts)


@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], TOOL, json.dumps(TOOL)]
)
def test_tools_are_a_list_of_objects(tools: Any) -> None:
    expected = text({"messages": ASKED, "tools": [TOOL]})
    assert expected == f"{json.dumps([TOOL])}user:q;assistant:a;"
    for record in ({"tools": tools}, {"chat_template_kwargs": {"tools": tools}}):
        assert text({"messages": ASKED, **record}) == expected
    kwargs = json.dumps({"tools": [TOOL]})
    assert text({"messages": ASKED, "chat_template_kwargs": kwargs}) == expected


@pytest.mark.parametrize("tools", [[], None, "", " ", "[]", "null", "{}"])
def test_no_tool_is_none(tools: Any) -> None:
    assert text({"messages": ASKED, "tools": tools}) == "user:q;assistant:a;"


@pytest.mark.parametrize("tools", [{"sky": FUNCTION}, ["sky"], [1], 1, "use sky"])
def test_what_are_no_tools(tools: Any) -> None:
    with pytest.raises(ValueError, match="the value of 'tools' is"):
        text({"messages": ASKED, "tools": tools})


def test_tools_inside_a_message_are_not_lost_in_silence() -> None:
    turns = [{"role": "system", "content": "s", "tools": [TOOL]}, *ASKED]
    with pytest.raises(ValueError, match="leaves out the tool 'sky'"):
        text({"messages": turns})
    inside = ChatTemplate(source="{% for m in messages %}{{ m.tools }}{{ m.content }};{% endfor %}")
    assert "sky" in text({"messages": turns}, inside)


ARGUMENTS = {"city": "K\u00f6ln"}
AS_JSON = json.dumps(ARGUMENTS, ensure_ascii=False)


@pytest.mark.parametrize("given", [ARGUMENTS, AS_JSON])
@pytest.mark.parametrize(
    "written",
    [
        "{{ c.function.arguments | tojson }}",
        "{{ c.function.arguments + '' }}",
        "{{ c.function.arguments }}",
        "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}"
        "{{ c.function.arguments | tojson }}{% endif %}",
    ],
)
def test_arguments_are_written_as_json(given: Any, written: str) -> None:
    template = ChatTemplate(
        source="{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
        f"{{{{ c.function.name }}}}({written}){{% endfor %}}{{% endif %}}{{{{ m.content }}}};"
        "{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "sky", "arguments": given}}
    for calls in ([call], json.dumps([call]), call):
        turns = [ASKED[0], {"role": "assistant", "content": "", "tool_calls": calls}]
        assert text({"messages": turns}, template) == f"q;sky({AS_JSON});"


def test_arguments_in_both_forms_are_written_in_the_one_that_the_template_takes() -> None:
    template = ChatTemplate(
        source="{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}({{ c.function.arguments }}){% endfor %}{{ m.content }};{% endfor %}"
    )
    calls = [
        {"type": "function", "function": {"name": "sky", "arguments": given}}
        for given in (AS_JSON, ARGUMENTS)
    ]
    turns = [ASKED[0], {"role": "assistant", "content": "", "tool_calls": calls}]
    assert text({"messages": turns}, template) == f"q;sky({AS_JSON})sky({AS_JSON});"


@pytest.mark.parametrize("form", [json.dumps, lambda calls: [json.dumps(call) for call in calls]])
def test_calls_may_be_json_text_as_a_whole_or_one_by_one(form: Any) -> None:
    template = ChatTemplate(
        source="{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }};{% endfor %}{{ m.content }};{% endfor %}"
    )
    calls = form([{"function": {"name": name, "arguments": {}}} for name in ("sky", "sea")])
    turns = [ASKED[0], {"role": "assistant", "content": "a", "tool_calls": calls}]
    assert text({"messages": turns}, template) == "q;sky;sea;a;"
    turns[1]["tool_calls"] = ["sky"]
    with pytest.raises(ValueError, match="'tool_calls of message 2' is text, but no JSON"):
        text({"messages": turns}, template)


def test_a_call_that_is_written_whole_stays_as_it_is() -> None:
    template = ChatTemplate(
        source="{% for m in messages %}{{ m.content }}{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function | tojson }}{% endif %}{% endfor %}"
    )
    function = {"name": "sky", "arguments": AS_JSON}
    calls = [{"type": "function", "function": function}]
    turns = [ASKED[0], {"role": "assistant", "content": "", "tool_calls": calls}]
    assert text({"messages": turns}, template) == f"q{json.dumps(function, ensure_ascii=False)}"


def test_parquet_learns_no_arguments_of_other_tools(tmp_path: Path) -> None:
    """Its structs have the keys of all objects of a column, with nulls for those that are none."""
    import pyarrow
    from pyarrow import parquet

    properties = {"sky": {"city": {"type": "string"}}, "clock": {"zone": {"type": "string"}}}
    tools = [
        {"function": {"name": name, "parameters": {"properties": each}}, "type": "function"}
        for name, each in properties.items()
    ]  # in the order of the alphabet, in which older pyarrow puts a struct's keys
    records = [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "tool_calls": [{"function": function}]},
                {"role": "assistant", "content": "a"},
            ],
            "tools": tools,
        }
        for function in (
            {"name": "sky", "arguments": {"city": "Rome"}},
            {"name": "clock", "arguments": {"zone": "UTC"}},
        )
    ]
    template = ChatTemplate(
        source="{{ tools | tojson }}{% for m in messages %}{{ m.role }}:{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}"
        "{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}"
    )
    parser = RecordParser(record_type="messages", chat_template=template)
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    (chunk,) = iter_chunks(path, columns=parser.columns)
    assert "null" in json.dumps(chunk.records())
    for row, record in zip(chunk.records(), records, strict=True):
        expected = parser(json.dumps(record).encode(), "jsonl")
        assert expected is not None
        assert "null" not in "".join(expected.parts)
        assert parser(row, "parquet") == expected

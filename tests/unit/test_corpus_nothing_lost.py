"""What a template does with a conversation: all of it is there, and only answers are learned."""

import pytest

from tests.unit.test_corpus_conversations import ANSWER, CALL, TEMPLATE, USER, learned, parse

RESULT = {"role": "tool", "content": "SECRET 12:00"}
ASKED = {"role": "assistant", "content": "Look.", "tool_calls": [CALL]}
# As Gemma 4 has it: the tool's response is a part of the turn that calls it.
INSIDE = (
    "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}</u>"
    "{% elif m.role == 'assistant' %}<m>{% for c in m.tool_calls or [] %}<call>"
    "{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endfor %}"
    "{% for t in messages[loop.index:loop.index + 1] if t.role == 'tool' %}"
    "<response>{{ t.content }}</response>{% endfor %}{{ m.content or '' }}</m>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<m>{% endif %}"
)


@pytest.mark.parametrize("text", ["SECRET 12:00", [{"type": "text", "text": "SECRET"}]])
def test_a_response_inside_an_answer_is_not_learned(text):
    record = {"messages": [USER, ASKED, RESULT | {"content": text}, ANSWER]}
    with pytest.raises(ValueError, match=r"writes message 3 \(tool\) inside an answer"):
        parse(record, INSIDE)
    assert learned(parse({"messages": [USER, ANSWER]}, INSIDE)) == ["Hello</m>"]
    beside = parse(record, TEMPLATE)
    assert not any("SECRET" in part for part in learned(beside))


def test_what_the_tag_encloses_is_for_the_template_to_say():
    tagged = INSIDE.replace("<m>{% for", "<m>{% generation %}{% for", 1).replace(
        "</m>{% endif", "</m>{% endgeneration %}{% endif", 1
    )
    (first, _) = learned(parse({"messages": [USER, ASKED, RESULT, ANSWER]}, tagged))
    assert "SECRET" in first


ALWAYS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


@pytest.mark.parametrize("turns", [[USER, ANSWER], [USER, ANSWER, USER], [USER, ANSWER] * 2])
@pytest.mark.parametrize("header", ["<|assistant|>", "assistant says: "])
def test_a_prompt_that_is_there_unasked_is_refused(turns, header):
    source = ALWAYS.replace("<|assistant|>", header).replace("<|{{ m.role }}|>", "{{ role(m) }}")
    source = (
        "{% macro role(m) %}{% if m.role == 'user' %}<|user|>{% else %}"
        + header
        + "{% endif %}{% endmacro %}"
        + source
    )
    with pytest.raises(ValueError, match="ends each conversation with the prompt for another"):
        parse({"messages": turns}, source)
    asking = source.removesuffix(header) + (
        "{% if add_generation_prompt %}" + header + "{% endif %}"
    )
    answers = turns.count(ANSWER)
    assert learned(parse({"messages": turns}, asking)) == ["Hello<|end|>"] * answers


HALF = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<|say|>{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    "{% if add_generation_prompt %}<|say|>{% endif %}"
)
"""As Cohere's Command A."""
LAST_ENDS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'user' or loop.last %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_half_a_prompt_that_is_there_unasked_is_refused():
    for turns in ([USER, ANSWER], [USER, ANSWER] * 2):
        with pytest.raises(ValueError, match="ends each conversation with the prompt for another"):
            parse({"messages": turns}, HALF)
    asking = HALF.replace("<|assistant|>{% if add_", "{% if add_").replace(
        "prompt %}<|say|>", "prompt %}<|assistant|><|say|>"
    )
    assert learned(parse({"messages": [USER, ANSWER] * 2}, asking)) == ["Hello<|end|>"] * 2
    # What only the last answer ends with is none, though the user's turns before a prompt have it.
    assert learned(parse({"messages": [USER, ANSWER] * 2}, LAST_ENDS)) == ["Hello", "Hello<|end|>"]


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}", "{}</s>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}</s>", "{}"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
            "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
            " {} </s>",
        ),
    ],
)
def test_templates_without_a_prompt_are_no_such(source, answer):
    turns = [USER, ANSWER, USER, ANSWER | {"content": "Hi"}]
    found = learned(parse({"messages": turns}, source))
    for text, said in zip(found, ("Hello", "Hi"), strict=True):
        assert answer.format(said) in text and "user" not in text


THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content and KEPT %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{{ '(call)' if m.tool_calls }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LATER = THINKING.replace("KEPT", "loop.index0 > ns.last")  # as Qwen 3
OF_CALLS = THINKING.replace("KEPT", "m.tool_calls")  # as Gemma 4
BECAUSE = ANSWER | {"reasoning_content": "because of that"}


def test_reasoning_of_earlier_turns_may_be_left_out_that_of_the_last_not():
    turns = [USER, BECAUSE, USER, BECAUSE | {"reasoning_content": "why not"}]
    earlier, last = learned(parse({"messages": turns}, LATER))
    assert ("because" in earlier, "why not" in last) == (False, True)
    assert learned(parse({"messages": [*turns[:3], ANSWER]}, OF_CALLS))
    for number, some in ((2, turns[:2]), (4, turns)):
        with pytest.raises(ValueError, match=f"leaves out 'reasoning_content' of message {number}"):
            parse({"messages": some}, OF_CALLS)
    assert learned(parse({"messages": [*turns[:2], USER]}, LATER))
    final_alone = THINKING.replace("KEPT", "loop.last")  # as gpt-oss, before a final answer
    assert learned(parse({"messages": [USER, BECAUSE, BECAUSE]}, final_alone))
    blank = [USER, BECAUSE | {"reasoning_content": " "}]
    assert learned(parse({"messages": blank}, OF_CALLS))


def test_reasoning_is_looked_for_where_the_template_looks_into_the_texts():
    picky = OF_CALLS.replace(
        "{{ m.content }}",
        "{% if 'H' not in m.content %}{{ raise_exception('no') }}{% endif %}{{ m.content }}",
    )
    assert learned(parse({"messages": [USER, ANSWER]}, picky))
    with pytest.raises(ValueError, match="leaves out 'reasoning_content' of message 2"):
        parse({"messages": [USER, BECAUSE]}, picky)


THOUGHT = ANSWER | {"content": "<think>\nbecause of that\n</think>\n\nHello"}
TAKEN_OUT = (  # as DeepSeek-R1 and its distillations have it
    "{% for m in messages %}<{{ m.role }}>{% set said = m.content %}"
    "{% if m.role == 'assistant' and KEPT and '</think>' in said %}"
    "{% set said = said.split('</think>')[-1] %}{% endif %}{{ said }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


@pytest.mark.parametrize("begins", ["<think>\n", ""])
def test_reasoning_in_a_content_is_not_taken_out_of_the_last_answer(begins):
    thought = THOUGHT | {"content": THOUGHT["content"].replace("<think>\n", begins)}
    with pytest.raises(ValueError, match="leaves out the reasoning of message 2"):
        parse({"messages": [USER, thought]}, TAKEN_OUT.replace("KEPT", "true"))
    of_earlier = TAKEN_OUT.replace("KEPT", "not loop.last")
    earlier, last = learned(parse({"messages": [USER, thought] * 2}, of_earlier))
    assert ("because" in earlier, "because" in last) == (False, True)
    asked = USER | {"content": "What is </think>?"}
    assert learned(parse({"messages": [asked, ANSWER]}, TAKEN_OUT.replace("KEPT", "true")))

"""Chat templates: the text is that of `transformers`, and answers are told apart."""

import json
import re

import pytest

from megatron_fastmix.corpus.documents.chat_template import ChatTemplate, read_chat_template
from megatron_fastmix.corpus.tokenizers.registry import tokenizer_files
from megatron_fastmix.errors import ConfigError, DataError
from tests.unit.templates_of_transformers import marked, rendered
from tests.unit.test_corpus_answer_only import learned, run

CHATML = (
    "{{ bos_token }}{% for message in messages %}\n"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]


def tokenizer_config(**changes):
    return json.dumps(
        {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": CHATML} | changes
    )


def answers_of(template, messages, variables=None, **options):
    text, answers = template.render(messages, variables, **options)
    return text, [text[start:stop] for start, stop in answers]


def test_the_text_is_what_transformers_renders(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(tokenizer_config())
    expected = rendered(CHATML, MESSAGES, bos_token="<s>", eos_token="</s>")
    assert answers_of(read_chat_template(tmp_path), MESSAGES) == (
        expected,
        ["Hello</s>\n", "So long</s>\n"],
    )


GENERATION = (
    "{% macro turn(m) %}<{{ m.role }}>{% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% endmacro %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "<assistant>{% generation %}\n  {{ m.content }}</s>\n{%- endgeneration %}!"
    "{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
)


def test_the_generation_tag_marks_answers_and_changes_no_text():
    template = ChatTemplate(source=GENERATION)
    text, answers = template.render(MESSAGES)
    assert text == rendered(GENERATION, MESSAGES)
    assert answers == marked(GENERATION, MESSAGES)
    bare = re.sub(r"(end)?generation %}", "set x = 1 %}", GENERATION)
    assert text == rendered(bare, MESSAGES)


def test_the_generation_tag_inside_a_macro():
    source = GENERATION.partition("{% for")[0] + "{% for m in messages %}{{ turn(m) }}{% endfor %}"
    text, answers = answers_of(ChatTemplate(source=source), MESSAGES[1:3])
    assert text == "<user>Hi</s><assistant>Hello</s>"
    assert answers == ["Hi</s>", "Hello</s>"]  # as the template says, whoever speaks


@pytest.mark.parametrize(
    "source",
    [
        "{% macro say(m) %}ASSISTANT: {% generation %}{{ m.content }}{% endgeneration %}"
        "{% endmacro %}{% for m in messages %}{% if m.role == 'assistant' %}{{ say(m) }}!"
        "{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'assistant' %}{% set a %}{% generation %}"
        "{{ m.content }}{% endgeneration %}{% endset %}ASSISTANT: {{ a }}!{% else %}"
        "{{ m.content }}\n\n{% endif %}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'assistant' %}ASSISTANT: {% filter trim %}"
        " {% generation %}{{ m.content }}{% endgeneration %} {% endfilter %}!{% else %}"
        "{{ m.content }}\n\n{% endif %}{% endfor %}",
    ],
)
def test_a_short_answer_is_marked_where_it_is_written(source):
    turns = [
        {"role": "user", "content": "Is it A or S?"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "\ufdd8"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "S"},
    ]
    text, answers = ChatTemplate(source=source).render(turns[:2] + turns[3:])
    assert text == "Is it A or S?\n\nASSISTANT: A!ASSISTANT: !ASSISTANT: S!"
    assert [(start, text[start:stop]) for start, stop in answers] == [
        (text.index(" A!") + 1, "A"),
        (text.index(" S!") + 1, "S"),
    ]
    # A text that has the marks itself is searched, as where the template looks into the body.
    assert answers_of(ChatTemplate(source=source), turns)[1][-1] in "AS"


REASONING = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% elif m.role == 'assistant' and '</think>' not in m.content %}<think></think>{{ m.content }}"
    "{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LATE_SYSTEM = (
    "{% for m in messages[1:] %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last or loop.index0 == messages | length - 3 %}{{ messages[0].content }} "
    "{% endif %}"
    "{{ m.content }}[/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
NO_EMPTY = "{% if messages[0]['role'] == 'x' %}{% endif %}" + CHATML
PROMPT_IN_LOOP = (
    "Chat.{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n"
    "{% if loop.last and add_generation_prompt %}<|assistant|>{% endif %}{% endfor %}"
)
PROMPT_ONLY = CHATML.replace("'<|assistant|>' }}", "'<|assistant|><think>' }}")


@pytest.mark.parametrize(
    ("source", "messages", "answers"),
    [
        # Reasoning is taken out of earlier turns.
        (
            REASONING,
            [
                *MESSAGES[1:2],
                {"role": "assistant", "content": "<think>a</think>Hello"},
                *MESSAGES[3:],
            ],
            ["Hello<|end|>\n", "<think></think>So long<|end|>\n"],
        ),
        # The system's message moves to the last turn.
        (LATE_SYSTEM, MESSAGES, [" Hello</s>", " So long</s>"]),
        # The assistant speaks first.
        (NO_EMPTY, MESSAGES[2:], ["Hello</s>\n", "So long</s>\n"]),
        (PROMPT_IN_LOOP, MESSAGES[2:], ["Hello</s>\n", "So long</s>\n"]),
        # The prompt begins a thought that the answer does not have.
        (PROMPT_ONLY, MESSAGES, ["Hello</s>\n", "So long</s>\n"]),
    ],
)
def test_answers_are_found_where_earlier_turns_change(source, messages, answers):
    template = ChatTemplate(source=source, special_tokens={"bos_token": "", "eos_token": "</s>"})
    assert answers_of(template, messages)[1] == answers


def test_tools_take_the_template_for_them(tmp_path):
    config = [
        {"name": "default", "template": CHATML},
        {"name": "tool_use", "template": "{{ tools[0].name }}" + CHATML},
    ]
    (tmp_path / "tokenizer_config.json").write_text(tokenizer_config(chat_template=config))
    template = read_chat_template(tmp_path)
    tools = [{"name": "clock"}]
    assert answers_of(template, MESSAGES)[0].startswith("<s>")
    assert answers_of(template, MESSAGES, {"tools": tools})[0].startswith("clock<s>")


def test_templates_beside_the_usual_one_are_read(tmp_path):
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    (more / "tool_use.jinja").write_text("{{ tools[0].name }}" + CHATML)
    (more / "rag.jinja").write_text("{% damaged %}")  # never asked for
    (tmp_path / "tokenizer_config.json").write_text(tokenizer_config(chat_template=None))
    for path in (tmp_path, tmp_path / "chat_template.jinja"):
        template = read_chat_template(path)
        assert template.source == CHATML
        tools = [{"name": "clock"}]
        assert answers_of(template, MESSAGES)[0].startswith("<s><|system|>")
        assert answers_of(template, MESSAGES, {"tools": tools})[0].startswith("clock<s>")
    assert str(more / "tool_use.jinja") in tokenizer_files(str(tmp_path))


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_is_found_in_a_folder_and_by_file(tmp_path, name):
    text = CHATML if name.endswith("jinja") else tokenizer_config()
    (tmp_path / name).write_text(text)
    assert read_chat_template(tmp_path).source == CHATML
    assert read_chat_template(tmp_path / name).source == CHATML


def test_a_missing_template_is_an_error(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(tokenizer_config(chat_template=None))
    with pytest.raises(ConfigError, match="found none in"):
        read_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages | length }}", "changes earlier text at message 2"),
        ("{{ raise_exception('no system role') }}", "fails: no system role"),
        ("{% for %}", "fails"),
        ("{{ 'a' + 1 }}", "fails: can only concatenate"),
        ("{{ messages[0].content.x.y }}", "fails"),
        ("{{ 1 // 0 }}", "fails"),
    ],
)
def test_a_template_that_cannot_be_used_is_an_error(source, message):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match=message):
        ChatTemplate(source=source).render(turns)


@pytest.mark.parametrize(
    "value",
    [
        3,
        {"a": "b"},
        [3],
        [{"name": "default"}],
        [{"name": [], "template": "x"}],
        "{% if %}",
        "{{ '",
    ],
)
def test_a_damaged_template_is_an_error_that_names_the_file(tmp_path, value):
    (tmp_path / "tokenizer_config.json").write_text(tokenizer_config(chat_template=value))
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json|test_a_damaged"):
        read_chat_template(tmp_path)


def test_preprocessing_learns_the_answers_of_a_template(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(tokenizer_config())
    run(tmp_path, [{"messages": MESSAGES}], "messages", chat_template=str(tmp_path))
    ((answers, whole),) = learned(tmp_path / "out")
    assert answers == "Hello</s>\nSo long</s>\n$"
    assert whole.startswith("<s>")
    with pytest.raises(DataError, match="no message of the assistant"):
        run(tmp_path, [{"messages": MESSAGES[:2]}], "messages", chat_template=str(tmp_path))
    with pytest.raises(ConfigError, match="for records with answers"):
        run(tmp_path, [{"text": "a"}], "text", chat_template="x")

"""Chat templates: the text is that of `transformers`, and answers are told apart."""

import json

import pytest

from megatron_fastmix.corpus.chat_template import ChatTemplate, read_chat_template
from megatron_fastmix.errors import ConfigError, DataError
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


def test_parts_join_to_what_transformers_renders(tmp_path):
    chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    (tmp_path / "tokenizer_config.json").write_text(tokenizer_config())
    template = read_chat_template(tmp_path)
    parts, answers = template.parts(MESSAGES)
    (expected,), _ = chat_template_utils.render_jinja_template(
        conversations=[MESSAGES], chat_template=CHATML, bos_token="<s>", eos_token="</s>"
    )
    assert "".join(parts) == expected
    assert [p for p, answer in zip(parts, answers, strict=True) if answer] == [
        "Hello</s>\n",
        "So long</s>\n",
    ]


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
        ("{{ messages[-1]['content'] }}", "changes earlier text at message 2"),
        ("{{ raise_exception('no system role') }}", "fails: no system role"),
        ("{% for %}", "fails"),
    ],
)
def test_a_template_that_cannot_be_used_is_an_error(source, message):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match=message):
        ChatTemplate(source=source).parts(turns)


def test_preprocessing_learns_the_answers_of_a_template(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(tokenizer_config())
    run(tmp_path, [{"messages": MESSAGES}], "messages", chat_template=str(tmp_path))
    ((answers, whole),) = learned(tmp_path / "out")
    assert answers == "Hello</s>\nSo long</s>\n$"
    assert whole.startswith("<s>")
    with pytest.raises(DataError, match="no message of the assistant"):
        run(tmp_path, [{"messages": MESSAGES[:2]}], "messages", chat_template=str(tmp_path))
    with pytest.raises(ConfigError, match="is for record_type messages"):
        run(tmp_path, [{"prompt": "a", "completion": "b"}], "prompt_completion", chat_template="x")

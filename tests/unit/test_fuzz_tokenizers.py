"""Damaged tokenizers, chat templates and the files beside them end in an error of this package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_fastmix.corpus.documents.chat_template import read_chat_template
from megatron_fastmix.corpus.documents.conversations import conversation_document
from megatron_fastmix.corpus.sentencepiece_training import SentencePieceConfig, train_sentencepiece
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import DataError
from tests.unit.damaged_files import Case, try_damage

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}<|{{ message.role }}|>"
    "{{ message['content'] | trim }}\n"
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ strftime_now('%Y') }}{% endfor %}"
)
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def use_folder(path: Path) -> None:
    """Loads the tokenizer of the file's folder, and encodes a conversation by its template."""
    tokenizer = load_tokenizer("HuggingFaceTokenizer", str(path.parent))
    tokenizer.encode("some words\n é")
    tokenizer.decode([0, 1])
    template = read_chat_template(path.parent, tokenizer.template_tokens)
    try:
        conversation_document(MESSAGES, {}, template, tokenizer.control_tokens)
    except ValueError as error:  # a bad line
        raise DataError(str(error)) from None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>", "<unk>", "<pad>"]
    )
    backend.train_from_iterator(["some words, and more words"] * 5, trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    names = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False, "special": True},
        "pad_token": None,
        "add_bos_token": True,
        "chat_template": TEMPLATE,
        "added_tokens_decoder": {"0": {"content": "<s>"}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    return tmp_path


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_folder_of_hugging_face(folder: Path, name: str) -> None:
    try_damage(Case(folder / name, use_folder))


def test_a_list_of_templates(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    entries = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": MARKED}]
    path.write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>", "chat_template": entries}))
    try_damage(Case(path, use_folder))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("special_tokens_map.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}}),
        ("generation_config.json", {"eos_token_id": [1, 2]}),
        ("config.json", {"text_config": {"eos_token_id": 1}}),
        ("chat_template.json", {"chat_template": MARKED}),
    ],
)
def test_files_beside_a_tokenizer(folder: Path, name: str, values: dict) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text(MARKED)
    if name == "chat_template.json":
        (folder / "chat_template.jinja").unlink()
    (folder / name).write_text(json.dumps(values))
    try_damage(Case(folder / name, use_folder))


@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["plain", "marked"])
def test_chat_templates(folder: Path, template: str) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(template)
    try_damage(Case(path, use_folder))


def test_sentencepiece_models(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "words {n}"}}\n' for n in range(200)))
    path = tmp_path / "a.model"
    train_sentencepiece([tmp_path / "in.jsonl"], path, SentencePieceConfig(vocab_size=280))

    def use(path: Path) -> None:
        load_tokenizer("SentencePieceTokenizer", str(path)).encode("some words\n é")

    try_damage(Case(path, use))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_files_of_gpt2(tmp_path: Path, name: str) -> None:
    pieces = ["a", "b", "ab", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")

    def use(path: Path) -> None:
        load_tokenizer("GPT2BPETokenizer", str(tmp_path)).encode("abab")

    try_damage(Case(tmp_path / name, use))


def test_a_vocabulary_of_tiktoken(tmp_path: Path) -> None:
    import base64

    pytest.importorskip("tiktoken")
    path = tmp_path / "vocab.json"
    singles = [bytes([byte]) for byte in range(256)]
    path.write_text(
        json.dumps(
            [
                {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
                for rank, piece in enumerate([*singles, b"ab"])
            ]
        )
    )

    def use(path: Path) -> None:
        tokenizer = load_tokenizer(
            "TikTokenizer", str(path), vocab_size=267, tiktoken_num_special_tokens=10
        )
        tokenizer.decode(tokenizer.encode("abab é"))

    try_damage(Case(path, use))

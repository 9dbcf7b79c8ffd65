"""A record with answers is encoded as one text; exactly the tokens of its answers are learned."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fastmix.corpus.documents.chat_template import ChatTemplate
from megatron_fastmix.corpus.documents.document import Document
from megatron_fastmix.corpus.documents.records import RecordParser
from megatron_fastmix.corpus.encoding import Encoder, answer_mask
from megatron_fastmix.corpus.reading.readers import Unpacked
from megatron_fastmix.corpus.splits import Splitter
from megatron_fastmix.corpus.tokenizers import load_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% else %}</s> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WORDS = [
    "what",
    "time",
    "is",
    "it",
    "the",
    "answer",
    "is",
    "noon",
    "and",
    "the",
    "end",
    "of",
    "a",
    "day",
    "in",
    "oslo",
]
PROSE = [" ".join(WORDS[n % 7 :: 1 + n % 3]) for n in range(60)]
TURNS = [
    {"role": "user", "content": "what time is it"},
    {"role": "assistant", "content": "the answer is noon"},
    {"role": "user", "content": "oslo"},
    {"role": "assistant", "content": "the end"},
]


def train_sentencepiece(folder, **options):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE * 3),
        model_writer=model,
        vocab_size=330,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path = folder / "m.model"
    path.write_bytes(model.getvalue())
    return load_tokenizer("SentencePieceTokenizer", str(path))


SENTENCEPIECE = [
    {"model_type": "bpe", "remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
    {"model_type": "bpe", "add_dummy_prefix": False},
    {"model_type": "unigram"},
    {"model_type": "unigram", "user_defined_symbols": ["<|user|>", "<|assistant|>"]},
]


@pytest.fixture(scope="module", params=range(len(SENTENCEPIECE)))
def sentencepiece(request, tmp_path_factory):
    return train_sentencepiece(tmp_path_factory.mktemp("sp"), **SENTENCEPIECE[request.param])


@pytest.fixture(scope="module", params=["metaspace", "bytes"])
def huggingface(request, tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    alphabet = []
    if request.param == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(PROSE, trainer)
    folder = tmp_path_factory.mktemp("hf")
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return load_tokenizer("HuggingFaceTokenizer", str(folder)), backend


def encode(tokenizer, record, *, template=TEMPLATE, record_type="messages", append_eod=False):
    chat = ChatTemplate(source=template, special_tokens=tokenizer.template_tokens)
    parser = RecordParser(
        record_type=record_type,
        chat_template=chat if template else None,
        control_tokens=tuple(tokenizer.control_tokens),
    )
    encoder = Encoder(
        tokenizer=tokenizer,
        parser=parser,
        append_eod=append_eod,
        splitter=Splitter(),
        held_out=(False,),
        excluded=frozenset(),
    )
    data = json.dumps(record).encode()
    chunk = encoder(Unpacked(path="x", record_format="jsonl", input_bytes=1, data=data))
    assert chunk.bad_records == ()
    (encoded,) = chunk.splits
    ids = np.frombuffer(encoded.tokens, np.uint16).tolist()
    mask = list(encoded.loss_mask)
    assert len(ids) == len(mask)
    return ids, [token for token, flag in zip(ids, mask, strict=True) if flag]


def test_huggingface_ids_are_those_of_the_whole_text(huggingface):
    tokenizer, backend = huggingface
    ids, learned = encode(tokenizer, {"messages": TURNS})
    text = "<s><|user|>\nwhat time is it</s> <|assistant|>\nthe answer is noon</s>"
    text += "<|user|>\noslo</s> <|assistant|>\nthe end</s>"
    whole = backend.encode(text, add_special_tokens=False)
    assert ids == whole.ids
    show = [backend.id_to_token(token).strip("Ġ▁") for token in learned]
    assert "".join(show).replace("▁", "").replace("Ġ", "") == "theanswerisnoon</s>theend</s>"


def test_huggingface_ids_are_those_of_transformers(huggingface, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer, backend = huggingface
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
        add_prefix_space=True,  # as the file has it; transformers 4 takes it away otherwise
    )
    turns = [{"role": "user", "content": "is</s>it <s>"}, *TURNS[1:]]
    expected = reference.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert encode(tokenizer, {"messages": turns})[0] == expected


def test_the_generation_tag_learns_what_transformers_learns(huggingface):
    transformers = pytest.importorskip("transformers")
    tokenizer, backend = huggingface
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}</s>{% else %}"
        "<|assistant|>{% generation %}{{ m.content }}</s>{% endgeneration %}{% endif %}{% endfor %}"
    )
    # Where offsets are trimmed it finds no answer that begins with a space.
    plain = json.loads(backend.to_str()) | {"post_processor": None}
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(backend).from_str(json.dumps(plain)),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=source,
        add_prefix_space=True,
    )
    found = reference.apply_chat_template(
        TURNS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, learned = encode(tokenizer, {"messages": TURNS}, template=source)
    assert ids == found["input_ids"]
    marked = zip(found["input_ids"], found["assistant_masks"], strict=True)
    assert learned == [token for token, flag in marked if flag]


def test_sentencepiece_puts_no_mark_where_the_text_has_none(sentencepiece):
    ids, learned = encode(sentencepiece, {"messages": TURNS})
    pieces = [sentencepiece._processor.id_to_piece(i) for i in ids]
    controls = [i for i in ids if i in (1, 2)]
    assert controls == [1, 2, 2, 2, 2]
    assert ids[0] == 1  # and no mark of a word before it
    assert sentencepiece.decode(learned).replace(" ", "") == "theanswerisnoontheend"
    assert [i for i in learned if i in (1, 2)] == [2, 2]
    first = pieces[ids.index(learned[0])]
    newline_is_space = sentencepiece.encode("a\nb") == sentencepiece.encode("a b")
    assert first.startswith("▁") == newline_is_space
    # The same text without controls, as one text of the model's own symbols.
    body = "".join(p for p, i in zip(pieces, ids, strict=True) if i not in (1, 2))
    assert "▁<" not in body.replace("</s>▁", "") or newline_is_space or "it▁<" in body


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab </s>é東\n", max_size=12), min_size=1, max_size=4))
def test_sentencepiece_text_never_becomes_control_pieces(sentencepiece, texts):
    texts = [text if text.strip() else "a" for text in texts]
    turns = []
    for text in texts:
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    ids, learned = encode(sentencepiece, {"messages": turns})
    assert [i for i in ids if i in (1, 2)] == [1, *[2, 2] * len(texts)]
    assert [i for i in learned if i in (1, 2)] == [2] * len(texts)
    said = sentencepiece.decode(learned)
    spaces = str.maketrans("", "", " \n")
    assert said.translate(spaces) == "".join(texts).translate(spaces)


def test_a_question_and_its_answer_are_one_text(sentencepiece):
    record = {"question": "what time is it", "answer": "the answer is noon </s>"}
    ids, learned = encode(
        sentencepiece, record, template=None, record_type="question_answer", append_eod=True
    )
    assert ids == [*sentencepiece.encode("what time is it\nthe answer is noon </s>"), 2]
    assert learned[-1] == 2
    assert sentencepiece.decode(learned).split() == ["the", "answer", "is", "noon", "</s>"]


@given(st.text(max_size=20), st.text(min_size=1, max_size=20).filter(str.strip))
def test_bytes_of_the_answer_are_learned(question, answer):
    question, answer = (t.encode("utf-8", "ignore").decode() or "a" for t in (question, answer))
    if not answer.strip():
        return
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    record = {"question": question, "answer": answer}
    ids, learned = encode(
        tokenizer, record, template=None, record_type="question_answer", append_eod=True
    )
    assert ids == [*f"{question}\n{answer}".encode(), 256]
    assert learned == [*answer.encode(), 256]


def test_a_token_across_the_boundary_is_learned(huggingface):
    tokenizer, _ = huggingface
    documents = [Document(("what", " ti", "", "me is"), (False, True, True, False))]
    tokens = tokenizer.encode_located(["what time is"], [()])
    mask = answer_mask(documents, tokens)
    for flag, start, stop in zip(mask, tokens.starts, tokens.stops, strict=True):
        assert flag == (start < 7 and max(stop, start + 1) > 4)
    assert 0 < mask.sum() < len(mask)

"""Answer-only data: the mask dataset marks exactly the tokens of answers and their ends."""

import json

import numpy as np
import pytest

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.dataset_paths import loss_mask_prefix
from megatron_fastmix.errors import DataError


def run(tmp_path, records, record_type, **options):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    dataset = DatasetConfig(
        prefix=str(tmp_path / "out"), input=(str(path),), record_type=record_type, **options
    )
    config = PreprocessConfig(
        tokenizer=TokenizerConfig(tokenizer_type="ByteLevelTokenizer"),
        datasets=(dataset,),
        workers=1,
    )
    return preprocess(config, lambda line: None)[0]


def learned(prefix):
    """Per sequence, the tokens that are masked in and all tokens, as text; `$` ends a document."""
    ids = np.fromfile(f"{prefix}.bin", np.uint16)
    mask = np.fromfile(loss_mask_prefix(prefix) + ".bin", np.uint8)
    assert ids.shape == mask.shape
    ends = np.flatnonzero(ids == 256) + 1
    show = "".join("$" if token == 256 else chr(token) for token in ids)
    pairs = zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)
    return [
        ("".join(c for c, m in zip(show[a:b], mask[a:b], strict=True) if m), show[a:b])
        for a, b in pairs
    ]


@pytest.mark.parametrize(
    ("record_type", "keys"),
    [("question_answer", ("question", "answer")), ("prompt_completion", ("prompt", "completion"))],
)
def test_pairs(tmp_path, record_type, keys):
    records = [dict(zip(keys, pair, strict=True)) for pair in [("1+1?", "2"), ("", "yes")]]
    manifest = run(tmp_path, records, record_type)
    assert learned(tmp_path / "out") == [("2$", "1+1?\n2$"), ("yes$", "\nyes$")]
    assert (manifest.sequences, manifest.loss_mask_tokens) == (2, 6)
    tokens, mask = (
        inspect_indexed_dataset(p) for p in (tmp_path / "out", loss_mask_prefix(tmp_path / "out"))
    )
    assert (tokens.tokens, tokens.sequences) == (mask.tokens, mask.sequences)
    assert mask.dtype == "uint8"


def test_chats_learn_what_the_assistant_says(tmp_path):
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    messages = [{"role": role, "content": content} for role, content in turns]
    run(tmp_path, [{"messages": messages[:3]}, {"messages": messages}], "messages")
    assert learned(tmp_path / "out") == [
        ("Hello$", "system: Be brief.\nuser: Hi\nassistant: Hello$"),
        ("Hello\n", "system: Be brief.\nuser: Hi\nassistant: Hello\nuser: Bye$"),
    ]


@pytest.mark.parametrize(
    ("record_type", "record", "reason"),
    [
        ("question_answer", {"question": "x"}, "no key 'answer'"),
        ("question_answer", {"question": "x", "answer": " "}, "empty, so nothing would be learned"),
        ("messages", {"messages": []}, "not empty"),
        ("messages", {"messages": ["x"]}, "message 1 is str"),
        ("messages", {"messages": [{"role": "robot", "content": "x"}]}, "the role 'robot'"),
        ("messages", {"messages": [{"role": "user", "content": "x"}]}, "no message of the assist"),
    ],
)
def test_records_without_an_answer_are_refused(tmp_path, record_type, record, reason):
    with pytest.raises(DataError, match=rf"in\.jsonl:1: .*{reason}"):
        run(tmp_path, [record], record_type)


def test_a_damaged_mask_is_written_anew(tmp_path):
    records = [{"question": "q", "answer": "a"}]
    run(tmp_path, records, "question_answer")
    mask = tmp_path / "out_loss_mask.bin"
    whole = mask.read_bytes()
    mask.write_bytes(whole[:-1])
    (tmp_path / "in.jsonl").touch()
    run(tmp_path, records, "question_answer")
    assert mask.read_bytes() == whole

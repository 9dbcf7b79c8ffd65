"""Damaged corpora, records and indexed datasets end in an error of this package."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.documents.records import RecordParser, read_documents
from megatron_fastmix.corpus.indexed.answer_rows import read_answer_rows
from megatron_fastmix.corpus.indexed.indexed_files import check_vocabulary, inspect_indexed_dataset
from megatron_fastmix.corpus.indexed.journal import Journal, read_journal, write_journal
from megatron_fastmix.corpus.indexed.manifest import read_manifest
from megatron_fastmix.corpus.inspection import length_statistics, overlap, sample_texts
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.reading.readers import iter_chunks
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import DataError
from tests.conftest import write_dataset, write_rows
from tests.unit.damaged_files import Case, try_damage

pytestmark = pytest.mark.slow

TOKENIZER = TokenizerConfig(tokenizer_type="ByteLevelTokenizer")


def write_parquet(path: Path, texts: Iterable[bytes]) -> None:
    """A column of text whose bytes nobody checks, as other writers of Parquet leave it."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column = pyarrow.array(list(texts), pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), path)


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "bad.parquet"]
)
def test_corpora(tmp_path: Path, name: str) -> None:
    records = [{"text": "some text é"}, {"text": "other", "n": 1}] * 20
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    path = tmp_path / name
    if name.endswith(".gz"):
        import gzip

        path.write_bytes(gzip.compress(lines))
    elif name.endswith(".zst"):
        path.write_bytes(pytest.importorskip("zstandard").compress(lines))
    elif name.endswith(".parquet"):
        write_parquet(path, [r["text"].encode() for r in records])
    else:
        path.write_bytes(lines)

    def use(path: Path) -> None:
        list(read_documents(path))

    case = Case(path, use)
    try_damage(case)
    if name == "bad.parquet":
        for bad in (b"\xff", b"ok\xed\xa0\x80", b"\xc3"):
            write_parquet(path, [b"good", bad, b"good"])
            with pytest.raises(DataError, match=r"bad\.parquet:2: invalid UTF-8 at byte"):
                use(path)


@pytest.mark.parametrize(
    ("record_type", "record"),
    [
        ("text", {"text": "abc"}),
        ("question_answer", {"question": "q", "answer": "a"}),
        ("prompt_completion", {"prompt": "q", "completion": "a"}),
        ("alpaca", {"instruction": "q", "input": "i", "output": "a"}),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        ),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ],
                "tools": "[]",
            },
        ),
    ],
)
def test_records(tmp_path: Path, record_type: Any, record: dict[str, Any]) -> None:
    parser = RecordParser(record_type=record_type)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))

    def use(path: Path) -> None:
        for chunk in iter_chunks(path):
            for line in chunk.records():
                try:
                    parser(line, chunk.record_format)
                except ValueError as error:  # a bad line
                    raise DataError(str(error)) from None

    try_damage(Case(path, use))


@pytest.mark.parametrize("end", [".idx", ".bin", "_loss_mask.idx", "_loss_mask.bin"])
def test_indexed_datasets(tmp_path: Path, end: str) -> None:
    prefix = tmp_path / "data"
    write_rows(prefix, [([1, 2, 3], [4, 5]), ([6], [7, 8]), ([9, 1], [2])], 258)
    tokenizer = load_tokenizer("ByteLevelTokenizer")

    def use(path: Path) -> None:
        inspect_indexed_dataset(prefix)
        check_vocabulary(prefix, 258)
        read_answer_rows(prefix, 8)
        length_statistics(prefix)
        sample_texts(prefix, tokenizer, 2)
        overlap(prefix, prefix, 2)

    with np.errstate(all="raise"):
        try_damage(Case(tmp_path / f"data{end}", use))


def test_a_dataset_of_text(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[1, 2, 3], [4]], 258)
    try_damage(
        Case(tmp_path / "data.idx", lambda path: inspect_indexed_dataset(path.with_suffix("")))
    )


def test_what_preprocessing_leaves(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "abc"}\n')
    config = PreprocessConfig(
        tokenizer=TOKENIZER,
        datasets=(
            DatasetConfig(prefix=str(tmp_path / "out"), input=(str(tmp_path / "in.jsonl"),)),
        ),
        workers=1,
    )
    preprocess(config, lambda line: None)
    try_damage(Case(tmp_path / "out.json", lambda path: read_manifest(path.with_suffix(""))))
    write_journal(str(tmp_path / "out"), Journal(recipe="x"))
    try_damage(
        Case(tmp_path / "out.journal.json", lambda path: read_journal(str(tmp_path / "out"), "x"))
    )


@pytest.mark.parametrize("name", ["out.json", "out.journal.json", "out.idx", "out.bin"])
def test_preprocessing_goes_on_from_any_file(tmp_path: Path, name: str) -> None:
    """What it finds of its own is taken up, or written anew, or refused by name."""
    (tmp_path / "in.jsonl").write_text('{"text": "abc"}\n' * 3)
    config = PreprocessConfig(
        tokenizer=TOKENIZER,
        datasets=(
            DatasetConfig(prefix=str(tmp_path / "out"), input=(str(tmp_path / "in.jsonl"),)),
        ),
        workers=1,
    )
    preprocess(config, lambda line: None)
    path = tmp_path / name
    if not path.exists():
        write_journal(str(tmp_path / "out"), Journal(recipe="x"))
    try_damage(Case(path, lambda path: preprocess(config, lambda line: None)))

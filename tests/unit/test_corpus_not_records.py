"""Inputs of which no line is a record, by their form: what each is, and a command that mends it."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import pickle
import subprocess
import tarfile
from pathlib import Path

import pytest

from megatron_fastmix.corpus.documents.records import RecordParser, read_documents
from megatron_fastmix.corpus.reading.inputs import expand_inputs
from megatron_fastmix.corpus.reading.readers import iter_chunks
from megatron_fastmix.errors import ConfigError, DataError

RECORDS = [{"text": "abc"}, {"text": "d, e\u00e9f"}, {"text": "ghi"}]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)

COLUMNS = json.dumps(
    {
        "id": {str(n): n for n in range(len(RECORDS))},
        "text": {str(n): record["text"] for n, record in enumerate(RECORDS)},
    }
)
"""As `pandas.DataFrame.to_json` writes them."""


def refused(path: Path, data: bytes | str, input_format: str = "auto") -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(DataError) as error:
        list(read_documents(path, input_format=input_format))  # type: ignore[arg-type]
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


def table(delimiter: str) -> str:
    text = io.StringIO()
    rows = csv.writer(text, delimiter=delimiter)
    rows.writerows([["text", "id"], *([r["text"], i] for i, r in enumerate(RECORDS))])
    return text.getvalue()


def tar() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("a.jsonl")
        member.size = len(LINES)
        archive.addfile(member, io.BytesIO(LINES.encode()))
    return packed.getvalue()


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (LINES.replace("\n", ",\n").removesuffix(",\n"), "a comma after each object"),
        (LINES.replace("\n", "\r"), "carriage returns alone"),
        ("".join(f"\x1e{line}\n" for line in LINES.splitlines()), "a record separator"),
        ("".join(f"{record!r}\n" for record in RECORDS), "Python's dicts"),
        (
            "".join(f'{{"note":"a\tb\rc","text":{json.dumps(r["text"])}}}\n' for r in RECORDS),
            r"control characters inside its strings, such as '\t'",
        ),
        (table(","), "a CSV table with the columns text, id"),
        (table("\t"), "a TSV table"),
        (json.dumps({"version": 1, "data": RECORDS}, indent=1), "its records under 'data'"),
        (json.dumps({"version": 1, "data": RECORDS}), "its records under 'data'"),
        (json.dumps({"type": "text_only", "instances": RECORDS}, indent=1), "under 'instances'"),
        (json.dumps([record["text"] for record in RECORDS]), "holds one JSON array"),
        (json.dumps([record["text"] for record in RECORDS], indent=1), "holds one JSON array"),
        (json.dumps(dict(enumerate(RECORDS)), indent=1), "a record under each key"),
        (json.dumps(dict(enumerate(RECORDS))), "a record under each key"),
        (COLUMNS, "a column of a table under each key"),
        (json.dumps(json.loads(COLUMNS), indent=1), "a column of a table under each key"),
        (tar(), "is a tar archive"),
        (bz2.compress(LINES.encode()), "is bzip2"),
        (lzma.compress(LINES.encode()), "is xz"),
        (gzip.compress(LINES.encode()), "is gzip"),
    ],
)
def test_the_command_makes_records_of_it(
    tmp_path: Path, data: str | bytes, what: str, mark: bytes
) -> None:
    if isinstance(data, str):
        data = mark + data.encode()
    message = refused(tmp_path / "a b.jsonl", data)
    assert what in message
    _, _, command = message.partition(" it: ")
    subprocess.run(["bash", "-c", command], check=True)
    (made,) = tmp_path.glob("a b.*.jsonl")
    assert list(read_documents(made)) == [record["text"] for record in RECORDS]


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize(
    ("record", "options", "text"),
    [
        ({"text": "abc", "data": RECORDS}, {}, "abc"),
        ({"text": "", "data": RECORDS}, {}, ""),
        ({"body": {"text": "abc"}, "data": RECORDS}, {"json_key": "body.text"}, "abc"),
        ({"data": ["abc"]}, {"json_key": "data"}, "abc"),
        ({"lines": {"0": "abc", "1": "d"}, "text": "abc"}, {}, "abc"),
        ({"data": TURNS}, {"json_key": "data", "record_type": "messages"}, "user: Hi"),
        ({"messages": TURNS}, {"record_type": "messages"}, "user: Hi"),
        (
            {"items": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            {"json_key": "items", "record_type": "sharegpt"},
            "user: Hi",
        ),
    ],
)
def test_the_only_line_may_be_a_record_with_a_list(
    tmp_path: Path, record: dict, options: dict, text: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    (chunk,) = iter_chunks(tmp_path / "a.jsonl")
    document = RecordParser(**options)(chunk.records()[0], "jsonl")
    assert document is not None and "".join(document.parts).startswith(text)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("<!DOCTYPE html>\n<p>404</p>\n", "is HTML or XML"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("- text: a\n- text: b\n", "holds no JSON: it begins with '- text: a'"),
        (bytes(300), "nothing but NUL bytes"),
        (pickle.dumps(RECORDS), "a Python pickle"),
        (b"PK\x03\x04\x14\0\0\0", "unzip -d"),
        (b"MMIDIDX\0\0\1\0", "the index of a tokenized dataset"),
    ],
)
def test_what_no_command_mends(tmp_path: Path, data: str | bytes, what: str) -> None:
    assert what in refused(tmp_path / "a.jsonl", data)


def test_tables_by_another_name(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = pyarrow.Table.from_pylist(RECORDS)
    parquet.write_table(rows, tmp_path / "b.jsonl")
    assert "mv" in refused(tmp_path / "b.jsonl", (tmp_path / "b.jsonl").read_bytes(), "lines")
    for writer in (pyarrow.ipc.new_file, pyarrow.ipc.new_stream):
        with pyarrow.OSFile(str(tmp_path / "c.txt"), "wb") as file, writer(file, rows.schema) as to:
            to.write_table(rows)
        command = refused(tmp_path / "c.txt", (tmp_path / "c.txt").read_bytes()).partition(": ")[2]
        assert "is Arrow" in command and "ipc.open_" in command


@pytest.mark.parametrize("indent", [None, 1])
def test_a_large_table_is_known_by_its_beginning(tmp_path: Path, indent: int | None) -> None:
    data = json.dumps({"text": {str(n): "a" * 99 for n in range(12_000)}}, indent=indent)
    assert "a column of a table" in refused(tmp_path / "a.json", data)


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_a_name_that_tells_another_packing(tmp_path: Path, end: str) -> None:
    other = gzip.compress(LINES.encode()) if end == ".zst" else b"\x28\xb5\x2f\xfd\0\0"
    for data in (LINES.encode(), other):
        assert f"the name tells {end}, but" in refused(tmp_path / f"a.jsonl{end}", data)


@pytest.mark.parametrize("name", ["a.jsonl.bz2", "a.csv", "a.tsv", "a.arrow", "a.zip", "a.XLSX"])
def test_names_that_no_input_format_reads(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ConfigError, match="are not read; make of it JSON lines"):
        expand_inputs([str(tmp_path / name)])


def test_a_bad_line_among_records_stays_one(tmp_path: Path) -> None:
    first = LINES.splitlines()[0]
    for bad in ("text,more", "<p>", "{'text': 1}", "\0" * 40, f"{first},", '{"a": {"0": 1'):
        (tmp_path / "a.jsonl").write_text(f"{bad}\n{LINES}")
        with pytest.raises(DataError, match=r"a.jsonl:1: (malformed|holds NUL)"):
            list(read_documents(tmp_path / "a.jsonl"))


def test_plain_text_may_begin_as_anything(tmp_path: Path) -> None:
    for text in ("BZh, a name", "PAR1 and more", "%PDF-1.4 is a mark", "{'a': 1}\n", "a,b\n1,2\n"):
        (tmp_path / "a.txt").write_text(text)
        assert list(read_documents(tmp_path / "a.txt")) == [text]


def test_lines_of_arrays_are_no_table(tmp_path: Path) -> None:
    lines = "".join(json.dumps([record["text"], "x"]) + "\n" for record in RECORDS)
    (tmp_path / "a.jsonl").write_text(lines)
    with pytest.raises(DataError, match=r"a\.jsonl:1: expected a JSON object, found list"):
        list(read_documents(tmp_path / "a.jsonl", input_format="auto"))

"""Files whose every line would be wrong are refused as a whole, with the command that mends."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_fastmix.corpus.documents.records import read_documents
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.corpus.reading import readers
from megatron_fastmix.corpus.reading.first_bytes import HEAD_BYTES
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import DataError
from tests.cases import slow
from tests.conftest import write_dataset

RECORDS = [{"text": "abc"}, {"text": "d e\u00e9f"}]


def texts(path: Path, input_format: str = "auto") -> list[str]:
    return list(read_documents(path, input_format=input_format))  # type: ignore[arg-type]


def follow(error: str, folder: Path) -> Path:
    """Runs the command at the end of a message as a user would; the file that it writes."""
    command = error.partition("convert it")[2].partition(": ")[2]
    if command.startswith("jq") and not shutil.which("jq"):
        pytest.skip("jq is not installed")
    subprocess.run(["bash", "-c", command], check=True)
    (made,) = [path for path in folder.iterdir() if ".lines." in path.name or ".utf8." in path.name]
    return made


@pytest.mark.parametrize("name", ["a.json", slow("it's $(my) data.jsonl"), slow("a.json.gz")])
@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [
        (json.dumps(RECORDS), "one JSON array", 2),
        (json.dumps(RECORDS, indent=2), "one JSON array", 2),
        ("[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n", "one JSON array", 2),
        ("\ufeff\n [" + ",\n".join(map(json.dumps, RECORDS)) + "]", "one JSON array", 2),
        pytest.param(
            json.dumps(RECORDS * 40_000, indent=1), "one JSON array", 80_000, id="a long array"
        ),
        (json.dumps(RECORDS[0], indent=2), "one JSON object over several lines", 1),
        ("\ufeff" + json.dumps(RECORDS[0], indent=2), "one JSON object over several lines", 1),
        ("\n".join(json.dumps(r, indent=4) for r in RECORDS), "objects over several lines", 2),
        # Without an id pytest names the test by its text, in a variable that programs then inherit.
        pytest.param(
            json.dumps({"text": "x" * HEAD_BYTES, "id": 1}, indent=2),
            "one JSON object over several lines",
            1,
            id="a long object",
        ),
    ],
)
def test_json_that_is_no_record_a_line(
    tmp_path: Path, name: str, text: str, kind: str, count: int
) -> None:
    path = tmp_path / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(DataError, match=f"holds {kind}") as refused:
        texts(path)
    assert len(texts(follow(str(refused.value), tmp_path))) == count


def test_a_line_that_is_wrong_is_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for first in ("[1, 2]", '{"text": ', "{", '{"text": "x"}}'):
        path.write_text(f'{first}\n{{"text": "abc"}}\n')
        with pytest.raises(DataError, match=r"a.jsonl:1: (malformed JSON|expected a JSON object)"):
            texts(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("input_format", "content", "expected"),
    [
        ("lines", "abc\ndef\n", ["abc", "def"]),
        ("text", "abc\ndef\n", ["abc\ndef\n"]),
        ("jsonl", '{"text": "abc"}\n{"text": "def"}\n', ["abc", "def"]),
    ],
)
def test_a_byte_order_mark_is_no_text(
    tmp_path: Path, packed: bool, input_format: str, content: str, expected: list[str]
) -> None:
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")

    def write(data: bytes) -> None:
        path.write_bytes(gzip.compress(data) if packed else data)

    write(content.encode("utf-8-sig"))
    assert texts(path, input_format) == expected
    for encoding in ("utf-16", "utf-32"):
        write(content.encode(encoding))
        with pytest.raises(DataError, match=f"the text is in {encoding.upper()}, by its") as error:
            texts(path, input_format)
        made = follow(str(error.value), tmp_path)
        assert texts(made, input_format) == expected
        made.unlink()


def test_a_mark_that_is_text_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc\n\ufeffdef\n" * 3)
    chunks = list(readers.iter_chunks(path, "lines", chunk_bytes=4))
    assert b"".join(line for c in chunks for line in c.records()).decode() == "abc\ufeffdef" * 3  # type: ignore[misc]


def test_parquet_whose_text_is_no_utf8(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    binary = pyarrow.array([b"ok", b"b\xffd", None, "é".encode()], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 4, binary.buffers())
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    (chunk,) = readers.iter_chunks(tmp_path / "a.parquet")
    assert chunk.records() == [{"text": "ok"}, b"b\xffd", {"text": None}, {"text": "é"}]
    with pytest.raises(DataError, match=r"a.parquet:2: invalid UTF-8 at byte 2"):
        texts(tmp_path / "a.parquet")


def test_a_number_that_python_does_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "abc", "n": {"9" * 5000}}}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1: .*a number that is too long"):
        texts(tmp_path / "a.jsonl")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "".join(json.dumps(record) + "\n" for record in RECORDS)),
        ("a.json", json.dumps(RECORDS)),
        ("a.txt", "abc\nd e\u00e9f\n"),
        ("a.txt", "\u043f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440 \u0438 x\n" * 3),
    ],
)
def test_wide_text_is_known_without_its_mark(tmp_path, encoding, name, text):
    file = tmp_path / name
    file.write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"is in UTF-(16|32)(LE|BE), by its zeros") as error:
        texts(file)
    assert follow(str(error.value), tmp_path).read_text("utf-8") == text


def test_a_lone_zero_is_no_wide_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\0def\n")
    assert texts(tmp_path / "a.txt") == ["abc\0def\n"]


def test_marks_inside_files_that_were_put_together_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc\n\xef\xbb\xbfdef\n")
    assert texts(tmp_path / "a.txt", "lines") == ["abc", "def"]
    assert texts(tmp_path / "a.txt", "text") == ["abc\ndef\n"]


@pytest.mark.parametrize("input_format", ["lines", "text"])
def test_of_two_marks_none_is_text(tmp_path, input_format):
    (tmp_path / "a.txt").write_text("\ufeff\ufeffabc")
    assert texts(tmp_path / "a.txt", input_format) == ["abc"]


def test_lines_that_end_with_carriage_returns_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\rdef\r")
    with pytest.raises(DataError, match="ends its lines with carriage returns alone") as error:
        texts(path, "lines")
    subprocess.run(["bash", "-c", str(error.value).partition("convert it: ")[2]], check=True)
    assert texts(tmp_path / "a.newlines.txt", "lines") == ["abc", "def"]
    for head in (b"abc\r", b"abc\r\ndef\r\n", b"10%\r20%\nabc\n"):
        path.write_bytes(head)
        assert texts(path, "lines")


def test_a_mark_in_a_key_is_shown(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"\ufefftext": "abc"}\n')
    with pytest.raises(DataError, match=r"the record has: '\\ufefftext'"):
        texts(tmp_path / "a.jsonl")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt", "a.jsonl.gz"])
def test_a_pointer_of_git_lfs_is_no_input(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(POINTER)
    with pytest.raises(DataError, match=f"{name}: is a pointer of Git LFS, .* `git lfs pull`"):
        list(read_documents(path))


@pytest.mark.parametrize("end", [".idx", ".bin"])
def test_nor_a_file_of_a_dataset(tmp_path: Path, end: str) -> None:
    write_dataset(tmp_path / "web", [[1, 2, 3]] * 50, vocab_size=9)
    (tmp_path / f"web{end}").write_bytes(POINTER)
    with pytest.raises(DataError, match=rf"web\{end}: is a pointer of Git LFS"):
        inspect_indexed_dataset(tmp_path / "web")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("SentencePieceTokenizer", "tok.model"), ("HuggingFaceTokenizer", "tokenizer.json")],
)
def test_nor_a_tokenizer(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(DataError, match=f"{name}: is a pointer of Git LFS"):
        load_tokenizer(kind, str(tmp_path / name))

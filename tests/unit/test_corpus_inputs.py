"""Every form of input gives the same documents; odd bytes are kept or named, never lost."""

import gzip
import json
import os

import numpy as np
import pytest
import zstandard

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus import readers
from megatron_fastmix.corpus.inputs import expand_inputs
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.errors import ConfigError, DataError

TEXTS = ["first\nwith a line break", "", "naïve 東京 🙂", "\0\r\n\t", "last"]


def run(tmp_path, *inputs, workers=1, **options):
    dataset = DatasetConfig(prefix=str(tmp_path / "out"), input=tuple(map(str, inputs)), **options)
    config = PreprocessConfig(
        tokenizer=TokenizerConfig(tokenizer_type="ByteLevelTokenizer"),
        datasets=(dataset,),
        workers=workers,
    )
    (manifest,) = preprocess(config, lambda line: None)
    return manifest


def texts_of(prefix):
    """Documents of a dataset of bytes, each ended by the end-of-document token."""
    ids = np.fromfile(f"{prefix}.bin", np.uint16)
    ends = np.flatnonzero(ids == 256)
    starts = np.concatenate([[0], ends[:-1] + 1])
    return [bytes(ids[a:b].astype(np.uint8)).decode() for a, b in zip(starts, ends, strict=True)]


def as_jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write_plain(path, data):
    path.write_bytes(data)


def write_gzip(path, data):
    # Two members, as from `cat a.gz b.gz`.
    path.write_bytes(gzip.compress(data[:30]) + gzip.compress(data[30:]))


def write_zstd(path, data):
    compress = zstandard.ZstdCompressor().compress
    path.write_bytes(compress(data[:30]) + compress(data[30:]))


@pytest.mark.parametrize(
    ("end", "write"),
    [("jsonl", write_plain), ("jsonl.gz", write_gzip), ("jsonl.zst", write_zstd)],
)
def test_jsonl(tmp_path, end, write, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 40)
    path = tmp_path / f"in.{end}"
    write(path, as_jsonl(TEXTS))
    manifest = run(tmp_path, path)
    assert texts_of(tmp_path / "out") == [text for text in TEXTS if text]
    assert (manifest.documents, manifest.empty_documents) == (5, 1)


def test_chunks_cover_a_file_at_line_ends(tmp_path):
    for end, write in (("jsonl", write_plain), ("jsonl.gz", write_gzip)):
        path = tmp_path / f"in.{end}"
        write(path, as_jsonl(TEXTS)[:-1])  # without the last line break
        for size in (1, 7, 1000):
            chunks = list(readers.iter_chunks(path, chunk_bytes=size))
            lines = [line for chunk in chunks for line in chunk.records()]
            assert [json.loads(line)["text"] for line in lines] == TEXTS
        assert len(chunks) == 1


def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"id": range(5), "body": TEXTS, "nested": [{"text": t} for t in TEXTS]})
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    for key in ("body", "nested.text"):
        run(tmp_path, tmp_path / "in.parquet", json_key=key)
        assert texts_of(tmp_path / "out") == [text for text in TEXTS if text]
    with pytest.raises(DataError, match="no column text; the file has: id, body, nested"):
        run(tmp_path, tmp_path / "in.parquet")
    (tmp_path / "in.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match=r"in\.parquet: not a readable Parquet file"):
        run(tmp_path, tmp_path / "in.parquet", json_key="body")


def test_plain_text_by_file_and_by_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three\n\nfour"))
    inputs = (tmp_path / "a.txt", tmp_path / "b.txt.gz")
    run(tmp_path, *inputs)
    assert texts_of(tmp_path / "out") == ["one\r\ntwo\n", "three\n\nfour"]
    run(tmp_path, *inputs, input_format="lines")
    assert texts_of(tmp_path / "out") == ["one", "two", "three", "four"]


def test_crlf_ends_of_jsonl_lines_are_no_text(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(as_jsonl(["one", "two"]).replace(b"\n", b"\r\n"))
    run(tmp_path, tmp_path / "in.jsonl")
    assert texts_of(tmp_path / "out") == ["one", "two"]


def test_folders_globs_and_loops(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "b.jsonl").write_bytes(as_jsonl(["b"]))
    (root / "a.jsonl").write_bytes(as_jsonl(["a"]))
    (root / "sub" / "c.jsonl").write_bytes(as_jsonl(["c"]))
    (root / "sub" / "note.md").write_text("not of a known format")
    (root / ".hidden.jsonl").write_bytes(as_jsonl(["hidden"]))
    (root / "sub" / "loop").symlink_to(root)
    (root / "broken.jsonl").symlink_to(root / "nothing")
    run(tmp_path, root)
    assert sorted(texts_of(tmp_path / "out")) == ["a", "b", "c"]
    run(tmp_path, root / "[ab].jsonl", root / "a.jsonl")
    assert texts_of(tmp_path / "out") == ["a", "b"]
    assert len(expand_inputs([str(root)], "text")) == 4


def test_inputs_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file, folder or match"):
        expand_inputs([str(tmp_path / "none")])
    with pytest.raises(DataError, match="no input file found"):
        expand_inputs([str(tmp_path)])
    with pytest.raises(DataError, match="no input file found"):
        expand_inputs([str(tmp_path / "*.jsonl")])
    (tmp_path / "notes.md").touch()
    with pytest.raises(ConfigError, match=r"notes\.md: the name tells no format"):
        expand_inputs([str(tmp_path / "notes.md")])


@pytest.mark.parametrize("end", ["gz", "zst"])
def test_a_truncated_compressed_file_is_named(tmp_path, end):
    path = tmp_path / f"in.jsonl.{end}"
    data = os.urandom(5000).hex()
    whole = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}[end](as_jsonl([data]))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"in\.jsonl\.{end}"):
        run(tmp_path, path)
    path.write_bytes(b"not compressed at all")
    with pytest.raises(DataError, match=rf"in\.jsonl\.{end}: cannot read"):
        run(tmp_path, path)
    assert not (tmp_path / "out.idx").exists()


def test_invalid_utf8_in_plain_text_is_named(tmp_path):
    (tmp_path / "in.txt").write_bytes(b"fine\nbad \xff\n")
    with pytest.raises(DataError, match=r"in\.txt:2: invalid UTF-8 at byte 5"):
        run(tmp_path, tmp_path / "in.txt", input_format="lines")


def test_bad_lines_are_skipped_and_counted_up_to_a_limit(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(as_jsonl(["one"]) + b"{\n" + as_jsonl(["two"]) + b'{"x": 1}\n')
    manifest = run(tmp_path, path, skip_bad_lines=2)
    assert manifest.bad_lines == 2
    assert texts_of(tmp_path / "out") == ["one", "two"]
    with pytest.raises(DataError, match=r"in\.jsonl:4: no key 'text'.*1 bad lines were allowed"):
        run(tmp_path, path, skip_bad_lines=1)


def test_line_numbers_count_over_chunks_and_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK_BYTES", 64)
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(["first file"] * 50))
    (tmp_path / "b.jsonl").write_bytes(as_jsonl(["second file"] * 77) + b"\n[]\n")
    with pytest.raises(DataError, match=r"b\.jsonl:79: expected a JSON object, found list"):
        run(tmp_path, tmp_path / "a.jsonl", tmp_path / "b.jsonl", workers=2)


@pytest.mark.slow
def test_a_document_of_100_megabytes(tmp_path):
    with (tmp_path / "in.jsonl").open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(100):
            file.write(b"0123456789 " * 90909)
        file.write(b'"}\n{"text": "after"}\n')
    manifest = run(tmp_path, tmp_path / "in.jsonl", workers=2)
    assert (manifest.documents, manifest.tokens) == (3, 100 * 11 * 90909 + 11 + 3)
    ids = np.memmap(tmp_path / "out.bin", np.uint16)
    assert bytes(ids[-6:-1].astype(np.uint8)) == b"after"


def test_a_file_is_read_once_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(["text"]))
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to("a.jsonl")
    spelled = ["./a.jsonl", "a.jsonl", str(tmp_path / "a.jsonl"), "link.jsonl", "*.jsonl", "."]
    assert expand_inputs(spelled) == ["./a.jsonl"]

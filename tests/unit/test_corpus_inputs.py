"""Every form of input gives the same documents; odd bytes are kept or named, never lost."""

import errno
import gzip
import json
import os
import re

import numpy as np
import pytest
import zstandard

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.documents.records import read_documents
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.reading import readers
from megatron_fastmix.corpus.reading.inputs import expand_inputs
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
    twice = pyarrow.Table.from_arrays([table["body"], table["body"]], ["text", "text"])
    parquet.write_table(twice, tmp_path / "in.parquet")
    with pytest.raises(DataError, match="has the column 'text' twice"):
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
    run(tmp_path, root)
    assert sorted(texts_of(tmp_path / "out")) == ["a", "b", "c"]
    run(tmp_path, root / "[ab].jsonl", root / "a.jsonl")
    assert texts_of(tmp_path / "out") == ["a", "b"]
    assert len(expand_inputs([str(root)], "text")) == 4
    (root / "sub" / "broken.jsonl").symlink_to(root / "nothing")
    for read in (root, root / "sub" / "*.jsonl", root / "**"):
        with pytest.raises(DataError, match=r"broken\.jsonl: .* links to .*nothing: No such file"):
            expand_inputs([str(read)])


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


def test_the_widest_window_of_zstd_is_read(tmp_path):
    line = as_jsonl(["x"])
    # A frame of one raw block, whose header tells the window of `zstd --long=31`.
    block = (len(line) << 3 | 1).to_bytes(3, "little") + line
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + block)
    assert list(read_documents(path)) == ["x"]


@pytest.mark.parametrize(
    "name",
    ["b.jsonl.bz2", "b.jsonl.xz", "b.jsonl.part", "b.jsonl.incomplete", "b.csv", "b.gz"],
)
def test_a_file_of_a_folder_that_would_be_lost_is_named(tmp_path, name):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(["a"]))
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=re.escape(name)):
        expand_inputs([str(tmp_path)])
    assert len(expand_inputs([f"{tmp_path}/**/*.jsonl"])) == 1


def test_files_of_another_kind_are_left_out_and_told(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(["a"]))
    (tmp_path / "cache.npy").write_bytes(b"x")
    assert len(expand_inputs([str(tmp_path)])) == 1
    assert f"left out: {tmp_path}/cache.npy" in capsys.readouterr().err


def test_capitals_in_the_end_of_a_packed_file_are_read(tmp_path):
    (tmp_path / "a.jsonl.GZ").write_bytes(gzip.compress(as_jsonl(["a"])))
    (tmp_path / "b.JSONL.Zst").write_bytes(zstandard.ZstdCompressor().compress(as_jsonl(["b"])))
    run(tmp_path, tmp_path)
    assert texts_of(tmp_path / "out") == ["a", "b"]


@pytest.mark.parametrize("end", ["", "/**/*.jsonl"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, end):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(["a"]))
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path="."):  # as to other users than root, who may run the tests
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="closed: cannot read the folder: Permission denied"):
        expand_inputs([f"{tmp_path}{end}"])


def test_a_loop_of_links_is_named(tmp_path):
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with pytest.raises(DataError, match=r"loop\.jsonl: cannot read the input"):
        expand_inputs([str(tmp_path)])


def test_a_pipe_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match=r"pipe\.jsonl: is a pipe or a device, not a file"):
        run(tmp_path, tmp_path / "pipe.jsonl")


def test_a_key_given_twice_is_a_bad_record(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(as_jsonl(["a"]) + b'{"text": "b", "meta": {"k": 1, "k": 2}}\n')
    with pytest.raises(DataError, match=r"in\.jsonl:2: the key 'k' occurs twice in one object"):
        run(tmp_path, path)
    assert run(tmp_path, path, skip_bad_lines=1).bad_lines == 1


def test_a_text_that_the_tokenizer_refuses_is_a_bad_record_with_its_line(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    words = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(tmp_path)}
    numbers = {"tokenizer_type": "NullTokenizer", "vocab_size": 9}
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(["a b", "a c", "b"]))
    (tmp_path / "1.jsonl").write_bytes(as_jsonl(["1 2", "x", "3"]))
    for tokenizer, name in ((words, "a.jsonl"), (numbers, "1.jsonl")):
        for workers, allowed in ((1, 0), (2, 0), (1, 1)):
            dataset = DatasetConfig(
                prefix=str(tmp_path / "out"),
                input=(str(tmp_path / name),),
                skip_bad_lines=allowed,
                held_out=True,
            )
            config = PreprocessConfig(
                tokenizer=TokenizerConfig(**tokenizer), datasets=(dataset,), workers=workers
            )
            if not allowed:
                with pytest.raises(DataError, match=f"{name}:2: the tokenizer refuses the text: "):
                    preprocess(config, lambda line: None)
                continue
            (manifest,) = preprocess(config, lambda line: None)
            assert (manifest.documents, manifest.bad_lines) == (2, 1)

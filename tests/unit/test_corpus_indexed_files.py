"""Indexed datasets are judged without Megatron: whole, damaged, or of another vocabulary."""

import numpy as np
import pytest

from megatron_fastmix.corpus.indexed_files import check_vocabulary, inspect_indexed_dataset
from megatron_fastmix.corpus.manifest import check_same_tokenizer
from megatron_fastmix.corpus.writer import IndexedDatasetWriter
from megatron_fastmix.errors import DataError


def write_dataset(prefix, documents, dtype=np.uint16):
    writer = IndexedDatasetWriter(prefix, dtype)
    for document in documents:
        tokens = np.array(document, dtype)
        writer.write(tokens.tobytes(), np.array([len(tokens)]), np.array([1]))
    writer.finish()


@pytest.fixture
def prefix(tmp_path):
    write_dataset(tmp_path / "source.v1", [[1, 2, 3], [4], [5, 6]])
    return str(tmp_path / "source.v1")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_summary(tmp_path, dtype):
    write_dataset(tmp_path / "source", [[1, 2, 3], [4]], dtype)
    summary = inspect_indexed_dataset(tmp_path / "source")
    assert (summary.documents, summary.sequences, summary.tokens) == (2, 2, 4)
    assert (summary.dtype, summary.longest_sequence) == (np.dtype(dtype).name, 3)


@pytest.mark.parametrize("end", ["bin", "idx"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated: .* found, .* expected"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0" * 9), "too long"),
    ],
)
def test_damage_is_named(prefix, tmp_path, end, damage, said):
    damage(tmp_path / f"source.v1.{end}")
    with pytest.raises(DataError, match=rf"source\.v1\.{end}: .*{said}"):
        inspect_indexed_dataset(prefix)


@pytest.mark.parametrize("head", [b"PK\x03\x04 a zip", b"MMIDIDX\0\0" + b"\x09" * 40])
def test_another_format_is_named(prefix, tmp_path, head):
    (tmp_path / "source.v1.idx").write_bytes(head)
    with pytest.raises(DataError, match=r"not a Megatron index|found version"):
        inspect_indexed_dataset(prefix)


def test_vocabulary(prefix):
    check_vocabulary(prefix, 7)
    with pytest.raises(DataError, match="token 5 is id 6, but the tokenizer has only 6 ids"):
        check_vocabulary(prefix, 6)


def test_large_datasets_are_sampled_at_both_ends(tmp_path):
    tokens = np.zeros(5 << 20, np.uint16)
    tokens[-1] = 9
    write_dataset(tmp_path / "large", [tokens])
    with pytest.raises(DataError, match=f"token {len(tokens) - 1} is id 9"):
        check_vocabulary(tmp_path / "large", 9, max_tokens=1)


def test_negative_ids_are_refused(tmp_path):
    write_dataset(tmp_path / "source", [[1, -1]], np.int32)
    with pytest.raises(DataError, match="id -1"):
        check_vocabulary(tmp_path / "source", 10)


def test_an_unfinished_writer_leaves_nothing_that_looks_complete(tmp_path):
    writer = IndexedDatasetWriter(tmp_path / "source", np.uint16)
    writer.write(b"\0\0", np.array([1]), np.array([1]))
    writer.close()
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.idx"))
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_datasets_without_manifest_pass(prefix):
    check_same_tokenizer({"a": prefix, "b": prefix}, "0" * 64)

"""Indexed datasets are judged without Megatron: whole, damaged, or of another vocabulary."""

from pathlib import Path

import numpy as np
import pytest

from megatron_fastmix.cli.main import main
from megatron_fastmix.corpus.indexed.indexed_files import (
    check_vocabulary,
    index_counts,
    inspect_indexed_dataset,
)
from megatron_fastmix.corpus.indexed.manifest import check_same_tokenizer
from megatron_fastmix.corpus.indexed.writer import IndexedDatasetWriter
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


def damage_index(path, place, values, dtype="<i8"):
    content = bytearray(path.read_bytes())
    data = np.array(values, dtype).tobytes()
    content[place : place + len(data)] = data
    path.write_bytes(content)


LENGTHS, OFFSETS, DOCUMENTS = 34, 34 + 3 * 4, 34 + 3 * 12
"""Places in the index of `prefix`, which has three sequences."""


@pytest.mark.parametrize(
    ("place", "values", "dtype", "said"),
    [
        (LENGTHS + 4, [-1], "<i4", "sequence 1 has -1 tokens"),
        (LENGTHS, [2, 2, 2], "<i4", "sequence 1 begins at byte 6, but .* end at byte 4"),
        (LENGTHS, [2**31 - 1], "<i4", "sequence 1 begins at byte 6, but"),
        (OFFSETS, [2, 6, 8], "<i8", "sequence 0 begins at byte 2, but .* end at byte 0"),
        (OFFSETS + 16, [-8], "<i8", "sequence 2 begins at byte -8, but .* end at byte 8"),
        (OFFSETS + 16, [2**62], "<i8", "sequence 2 begins at byte"),
        (DOCUMENTS, [1], "<i8", "the first document index is 1, expected 0"),
        (DOCUMENTS + 24, [2], "<i8", "last document index is 2, but the dataset has 3 sequences"),
        (DOCUMENTS + 24, [4], "<i8", "last document index is 4, but the dataset has 3 sequences"),
        (DOCUMENTS + 8, [3, 1], "<i8", "document index 2 is 1, smaller than the 3 before it"),
        (DOCUMENTS + 8, [-1], "<i8", "document index 1 is -1, smaller than the 0 before it"),
        (9 + 8, [7], "u1", "its ids are float32"),
        (9 + 8, [2], "u1", "sequence 1 begins at byte 6, but"),
    ],
)
def test_an_index_that_contradicts_itself_is_named(prefix, place, values, dtype, said):
    damage_index(Path(f"{prefix}.idx"), place, values, dtype)
    with pytest.raises(DataError, match=rf"source\.v1\.idx: .*{said}"):
        inspect_indexed_dataset(prefix)


def test_document_indices_that_do_not_cover_the_sequences_are_named(prefix, capsys):
    """As tools write that count documents and merge sequences."""
    index = Path(f"{prefix}.idx")
    content = bytearray(index.read_bytes())
    content[26:34] = np.array([3], "<u8").tobytes()
    index.write_bytes(content[:-8])
    assert main(["inspect", prefix]) == 2
    assert (
        "the last document index is 2, but the dataset has 3 sequences" in capsys.readouterr().err
    )


def test_modes(prefix):
    """Megatron's multimodal datasets have a byte for each sequence behind the rest."""
    index = Path(f"{prefix}.idx")
    content = index.read_bytes()
    index.write_bytes(content + bytes(3))
    assert inspect_indexed_dataset(prefix).sequences == 3
    index.write_bytes(content + bytes([0, 1, 0]))
    with pytest.raises(DataError, match="of another mode than text"):
        inspect_indexed_dataset(prefix)


def test_the_loss_mask_is_inspected_too(prefix, capsys):
    write_dataset(f"{prefix}_loss_mask", [[1, 1, 1], [1], [1, 1]], np.uint8)
    assert main(["inspect", prefix]) == 0
    damage_index(Path(f"{prefix}_loss_mask.idx"), DOCUMENTS, [1])
    assert main(["inspect", prefix]) == 2
    assert "_loss_mask.idx: the first document index is 1" in capsys.readouterr().err
    write_dataset(f"{prefix}_loss_mask", [[1, 1, 1], [1, 1, 1]], np.uint8)
    assert main(["inspect", prefix]) == 2
    assert "2 sequences of 6 entries for 3 of 6 tokens" in capsys.readouterr().err


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


def test_the_head_alone_tells_the_counts_of_a_good_dataset(tmp_path):
    write_dataset(tmp_path / "a", [[1, 2, 3], [4], [5, 6]])
    summary = inspect_indexed_dataset(tmp_path / "a")
    assert index_counts(tmp_path / "a") == (summary.tokens, summary.documents)


@pytest.mark.parametrize("content", [b"MMIDIDX\0\0", b"x" * 40])
def test_a_head_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(b"1")
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(DataError, match="not a Megatron index"):
        index_counts(tmp_path / "a")

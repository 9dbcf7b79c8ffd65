"""Megatron's cached indices are of the data that is there now, and whole."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.batch import index_cache
from megatron_fastmix.batch.sources import build_datasets
from megatron_fastmix.checkpoint.identity import fingerprint
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from tests.conftest import (
    SEQ_LENGTH,
    synthetic_documents,
    synthetic_rows,
    write_dataset,
    write_rows,
)

VOCABULARY = 258


def one_epoch(prefix: Path, cache: Path) -> Any:
    (train, _, _) = build_datasets(
        [([str(prefix)], None), None, None],
        [None, None, None],
        seq_length=SEQ_LENGTH,
        seed=1,
        tokenizer=load_tokenizer("ByteLevelTokenizer"),
        cache_path=str(cache),
    )
    return train


def tokens_of(dataset: Any) -> int:
    return sum(len(dataset[i]["tokens"]) for i in range(len(dataset)))


@pytest.mark.parametrize("documents", [10, 40, 200])
def test_a_source_that_was_made_anew_is_read_whole(tmp_path: Path, documents: int) -> None:
    prefix, cache = tmp_path / "source", tmp_path / "cache"
    write_dataset(prefix, synthetic_documents("forward", 40, 1), VOCABULARY)
    one_epoch(prefix, cache)
    write_dataset(prefix, synthetic_documents("noise", documents, 2), VOCABULARY)
    fresh = one_epoch(prefix, tmp_path / "fresh")
    again = one_epoch(prefix, cache)
    assert tokens_of(again) == tokens_of(fresh)
    for i in range(len(fresh)):
        assert np.array_equal(again[i]["tokens"], fresh[i]["tokens"])


def test_what_did_not_change_is_not_indexed_again(tmp_path: Path) -> None:
    prefix, cache = tmp_path / "source", tmp_path / "cache"
    write_dataset(prefix, synthetic_documents("forward", 40, 1), VOCABULARY)
    one_epoch(prefix, cache)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    one_epoch(prefix, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == before
    assert len(before) == 3


def test_damaged_indices_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_cache, "_UNCHANGED_SECONDS", 0.1)  # nobody writes them
    prefix, cache = tmp_path / "source", tmp_path / "cache"
    write_dataset(prefix, synthetic_documents("forward", 40, 1), VOCABULARY)
    count = tokens_of(one_epoch(prefix, cache))
    for path, size in zip(sorted(cache.rglob("*.npy")), (0, 20, -8), strict=True):
        path.write_bytes(path.read_bytes()[:size])
    assert tokens_of(one_epoch(prefix, cache)) == count


@pytest.mark.slow
def test_an_index_that_another_run_is_writing_is_waited_for(tmp_path: Path) -> None:
    prefix, cache = tmp_path / "source", tmp_path / "cache"
    write_dataset(prefix, synthetic_documents("forward", 40, 1), VOCABULARY)
    count = tokens_of(one_epoch(prefix, cache))
    (path, *_) = sorted(cache.rglob("*.npy"))
    whole = path.read_bytes()
    path.write_bytes(b"")

    def write_slowly() -> None:
        with path.open("wb") as file:  # the file that is there, as a writer has it open
            for part in np.array_split(np.frombuffer(whole, np.uint8), 10):
                file.write(part.tobytes())
                file.flush()
                time.sleep(0.2)

    writer = threading.Thread(target=write_slowly)
    writer.start()
    assert tokens_of(one_epoch(prefix, cache)) == count
    writer.join()
    assert path.read_bytes() == whole


def test_another_loss_mask_is_other_content(tmp_path: Path) -> None:
    rows = synthetic_rows("forward", 20, 1)
    prefix = tmp_path / "rows"
    write_rows(prefix, rows, VOCABULARY)
    before = fingerprint(str(prefix))
    assert fingerprint(str(prefix)) == before
    write_rows(prefix, [(p[:-1], [*p[-1:], *a]) for p, a in rows], VOCABULARY)
    assert fingerprint(str(prefix)) != before

"""Megatron's cached indices are of the data that is there now, and whole."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


def one_epoch(prefix: Path, cache: Path, tokenizer: Any = None, *, lean: bool = False) -> Any:
    (train, _, _) = build_datasets(
        [([str(prefix)], None), None, None],
        [None, None, None],
        seq_length=SEQ_LENGTH,
        seed=1,
        tokenizer=tokenizer or load_tokenizer("ByteLevelTokenizer"),
        cache_path=str(cache),
        lean=lean,
    )
    return train


def tokens_of(dataset: Any) -> int:
    return sum(len(dataset[i]["tokens"]) for i in range(len(dataset)))


@pytest.mark.parametrize("lean", [False, True])
def test_a_samples_mask_is_the_same_whichever_is_read_first(tmp_path: Path, lean: bool) -> None:
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    tokenizer.pad = 7  # as where a text spells the padding token out
    text = np.random.default_rng(3).integers(0, 16, 40 * SEQ_LENGTH)
    write_dataset(tmp_path / "source", [text.tolist()], VOCABULARY)
    datasets = [
        one_epoch(tmp_path / "source", tmp_path / "cache", tokenizer, lean=lean) for _ in range(2)
    ]
    forth, back = range(len(datasets[0])), reversed(range(len(datasets[0])))
    masks, others = (
        {i: np.array(dataset[i]["loss_mask"]) for i in order}
        for dataset, order in zip(datasets, (forth, back), strict=True)
    )
    for i, mask in masks.items():
        assert np.array_equal(mask, others[i])
    padding = sum(int((mask == 0).sum()) for mask in masks.values())
    assert 0 < padding <= int((text == 7).sum())


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


def test_damaged_indices_are_made_again(tmp_path: Path) -> None:
    prefix, cache = tmp_path / "source", tmp_path / "cache"
    write_dataset(prefix, synthetic_documents("forward", 40, 1), VOCABULARY)
    count = tokens_of(one_epoch(prefix, cache))
    for path, size in zip(sorted(cache.rglob("*.npy")), (0, 20, -8), strict=True):
        path.write_bytes(path.read_bytes()[:size])
    assert tokens_of(one_epoch(prefix, cache)) == count


def build_together(prefix: Path, caches: Sequence[Path], start: Any, answers: Any) -> None:
    """One of two runs that begin at once, again and again; answers how many samples it found, or
    what went wrong."""
    found: list[Any] = []
    for cache in caches:
        start.wait()
        try:
            found.append(len(one_epoch(prefix, cache)))
        except (OSError, EOFError, ValueError) as error:
            found.append(repr(error))
    answers.put(found)


@pytest.mark.slow
def test_runs_that_begin_together_may_share_a_cache(tmp_path: Path) -> None:
    prefix, caches = tmp_path / "source", [tmp_path / f"cache-{i}" for i in range(100)]
    write_dataset(prefix, synthetic_documents("forward", 2000, 1), VOCABULARY)
    samples = len(one_epoch(prefix, tmp_path / "alone"))
    # A fork would have the process group of a test before, and none of its threads.
    processes = multiprocessing.get_context("spawn")
    start, answers = processes.Barrier(2), processes.Queue()
    runs = [
        processes.Process(target=build_together, args=(prefix, caches, start, answers), daemon=True)
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    found = [answers.get(timeout=120) for _ in runs]
    for run in runs:
        run.join()
    assert found == [[samples] * len(caches)] * 2
    for cache in caches:
        (folder,) = cache.iterdir()
        assert len(list(folder.iterdir())) == 4  # and nothing aside


def test_another_loss_mask_is_other_content(tmp_path: Path) -> None:
    rows = synthetic_rows("forward", 20, 1)
    prefix = tmp_path / "rows"
    write_rows(prefix, rows, VOCABULARY)
    before = fingerprint(str(prefix))
    assert fingerprint(str(prefix)) == before
    write_rows(prefix, [(p[:-1], [*p[-1:], *a]) for p, a in rows], VOCABULARY)
    assert fingerprint(str(prefix)) != before

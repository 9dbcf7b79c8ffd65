"""What ranks do at a start: read their own samples, look at ids once a host, say where they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fastmix.batch import index_progress
from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.batch.sources import build_source_blend, build_targets
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus import indexed_files
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import DataError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.search import inputs
from megatron_fastmix.search.loop import Search
from tests.distributed.searches import load

pytestmark = pytest.mark.slow

RANKS = 5


def batches_of(config: SearchConfig, rank: int, ranks: int) -> Batches:
    """Those of one rank of several, in this process."""
    group = DataParallelGroup()
    group.rank, group.size = rank, ranks
    tokenizer, cache = load_tokenizer("ByteLevelTokenizer"), str(config.data.data_cache_path)
    blend = build_source_blend(
        config, Mixture(config.source_names, config.mixture), tokenizer, cache
    )
    return Batches(config, blend, build_targets(config, tokenizer, cache), group)


def outer_batches(batches: Batches) -> list[Any]:
    alpha = np.full(3, 1 / 3)
    objective = batches.objective(1, alpha, np.ones(1))
    return [*batches.probe(1, alpha), *(batch for term in objective for batch, _ in term)]


def test_a_rank_reads_its_own_samples_of_probe_and_targets(
    search_values: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_values["training"].update(micro_batch_size=1, global_batch_size=RANKS)
    config = load(search_values)
    read: list[int] = []
    alone = batches_of(config, 0, 1)
    dataset_class = type(alone.blend.datasets[0])
    original = dataset_class.__getitem__

    def counted(dataset: Any, index: int) -> Any:
        read.append(index)
        return original(dataset, index)

    every = [bytes(b.tokens.numpy()) for b in outer_batches(alone)]
    monkeypatch.setattr(dataset_class.__mro__[1], "__getitem__", counted)
    found = []
    for rank in range(RANKS):
        batches = batches_of(config, rank, RANKS)
        read.clear()
        found.append([bytes(b.tokens.numpy()) for b in outer_batches(batches)])
        # 15 probe and 10 target samples, a fifth of each.
        assert len(read) == (15 + 10) // RANKS
    assert sorted(t for rank in found for t in rank) == sorted(every)


def test_indexing_says_how_far_it_is(
    search_values: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(search_values)
    batches_of(config, 0, 1)
    assert "indexing" not in capsys.readouterr().out  # it was quick
    monkeypatch.setattr(index_progress, "EVERY_SECONDS", 0.0)
    batches_of(config, 0, 1)
    out = capsys.readouterr().out
    assert f"indexing dataset 2 of 3: {search_values['sources'][1]['path']}\n" in out


def counts_of_reads(config: SearchConfig) -> tuple[int, int]:
    """Indices that this rank reads whole, and heads of indices, in a start."""
    os.environ["LOCAL_RANK"] = str(torch.distributed.get_rank())
    indexed_files._inspect.cache_clear()  # that of the process that was forked
    whole, heads = [], []
    read_index, index_counts = indexed_files._read_index, inputs.index_counts

    def counted_index(*arguments: Any) -> Any:
        whole.append(arguments)
        return read_index(*arguments)

    def counted_head(prefix: Any) -> Any:
        heads.append(prefix)
        return index_counts(prefix)

    indexed_files._read_index = counted_index
    inputs.index_counts = counted_head  # type: ignore[attr-defined]
    Search(config)
    return len(whole), len(heads)


def test_one_rank_of_a_host_reads_the_indices_whole(search_values: dict) -> None:
    datasets = len(search_values["sources"]) + len(search_values["targets"])
    first, second = run_ranks(2, counts_of_reads, load(search_values))
    assert first == (datasets, 0)
    assert second == (0, datasets)


def refused(config: SearchConfig) -> str:
    # One rank of a host looks at the ids; the others are on the same host.
    os.environ["LOCAL_RANK"] = str(torch.distributed.get_rank())
    with pytest.raises(DataError) as found:
        Search(config)
    return str(found.value)


def test_what_one_rank_refuses_ends_all(search_values: dict, tmp_path: Path) -> None:
    path = Path(search_values["sources"][1]["path"])
    for end in (".idx", ".bin"):
        (tmp_path / f"bad{end}").write_bytes(Path(f"{path}{end}").read_bytes())
    with open(tmp_path / "bad.bin", "r+b") as file:
        file.write((9999).to_bytes(2, "little"))
    search_values["sources"][1]["path"] = str(tmp_path / "bad")
    first, second = run_ranks(2, refused, load(search_values))
    assert "token 0 is id 9999" in first
    assert second == "the inputs: another rank was refused them, as it says"

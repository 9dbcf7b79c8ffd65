"""What ranks do at a start: read their own samples, look at ids once a host, say where they are."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fastmix.batch import index_progress
from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.batch.sources import build_source_blend, build_targets
from megatron_fastmix.checkpoint import identity
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus.indexed import answer_rows, indexed_files
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import DataError
from megatron_fastmix.file_memo import MEMO
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.search import assembly
from megatron_fastmix.search.inputs import check_inputs
from megatron_fastmix.search.known_inputs import cache_folder, hand_on, take_over
from megatron_fastmix.search.loop import Search
from megatron_fastmix.start.claim import claim
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
    first, second, third = (source["path"] for source in search_values["sources"])
    assert f"indexing source 2 of 3: {second}\n" in out
    search_values["sources"] = [
        {"name": "a", "path": first},
        {"name": "b", "path": [second, third]},
    ]
    batches_of(load(search_values), 0, 1)
    assert f"indexing source 2 of 2, dataset 3 of 3: {third}\n" in capsys.readouterr().out


def reads_of_a_start(config: SearchConfig) -> Counter[str]:
    """Indices, samples of files and rows that this rank reads in a start."""
    MEMO.clear()  # what the process knows that was forked
    found: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        original = getattr(module, name)

        def function(*arguments: Any, **named: Any) -> Any:
            found[name] += 1
            return original(*arguments, **named)

        setattr(module, name, function)

    counted(indexed_files, "_read_index")
    counted(identity, "_sample")
    counted(answer_rows, "read_answer_rows")
    with open_calls() as opened:
        Search(config)
    heads = [path for path in opened if path.endswith(".idx")]
    return found | Counter({"indices opened": len(heads)})


@contextlib.contextmanager
def open_calls() -> Iterator[list[str]]:
    """Paths of `open` in the checks of the inputs."""
    paths: list[str] = []

    def opened(path: Any, *arguments: Any, **named: Any) -> Any:
        paths.append(str(path))
        return builtins.open(path, *arguments, **named)

    indexed_files.open = opened  # type: ignore[attr-defined]
    yield paths
    del indexed_files.open  # type: ignore[attr-defined]


@pytest.mark.parametrize("answers", [False, True])
def test_one_rank_of_a_host_reads_for_all_and_for_the_next_start(
    search_values: dict, answer_corpora: Path, answers: bool
) -> None:
    if answers:
        for entry in (*search_values["sources"], *search_values["targets"]):
            entry["path"] = str(answer_corpora / entry["name"])
    config = load(search_values)
    datasets = len(config.sources) + len(config.targets)
    masks = datasets if answers else 0
    first, second = run_ranks(2, reads_of_a_start, config)
    assert first["_read_index"] == datasets + masks
    assert first["_sample"] == 2 * (datasets + masks)
    assert first["read_answer_rows"] == masks
    assert not second.total(), second
    assert all(not each.total() for each in run_ranks(2, reads_of_a_start, config))


def test_the_launcher_hands_on_what_it_has_read(search_values: dict) -> None:
    config = load(search_values)
    MEMO.clear()
    inputs = check_inputs(config, 2)
    claim(config)
    hand_on(config, inputs)
    first, second = run_ranks(2, reads_of_a_start, config)
    assert first == Counter(_sample=2 * (len(config.sources) + len(config.targets)))
    assert not second.total()


def test_a_dataset_that_changes_is_read_again(search_values: dict, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    for end in (".idx", ".bin"):
        content = Path(search_values["sources"][0]["path"] + end).read_bytes()
        Path(f"{path}{end}").write_bytes(content)
    search_values["sources"][0]["path"] = str(path)
    config = load(search_values)
    hand_on(config, check_inputs(config, 1))
    before = os.stat(f"{path}.bin")
    with open(f"{path}.bin", "r+b") as file:
        file.write((9999).to_bytes(2, "little"))
    # As copying tools leave it that keep times.
    os.utime(f"{path}.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    MEMO.clear()
    take_over(config)
    with pytest.raises(DataError, match="token 0 is id 9999"):
        check_inputs(config, 1)


def test_rows_to_draw_are_mapped_from_one_file(search_values: dict, answer_corpora: Path) -> None:
    for entry in (*search_values["sources"], *search_values["targets"]):
        entry["path"] = str(answer_corpora / entry["name"])
    config = load(search_values)
    hand_on(config, check_inputs(config, 1))
    files = sorted(cache_folder(config).glob("rows-*.npy"))
    assert len(files) == 4
    blend = batches_of(config, 0, 1).blend
    for dataset in blend.datasets:
        rows = answer_rows.read_answer_rows(dataset.dataset_path, config.data.seq_length)
        assert np.array_equal(dataset.indices, rows.kept)
        assert Path(dataset.indices.filename) in files
        assert dataset.tokens_per_sample == rows.answer_tokens[rows.kept].mean()


def waits_of_a_start(config: SearchConfig) -> list[str]:
    """What happens in a start, and for how long a collective may wait from then on."""
    happened: list[str] = []

    def told(name: str, tell: Callable[..., str]) -> None:
        original = getattr(assembly, name)

        def function(*arguments: Any, **named: Any) -> Any:
            happened.append(tell(*arguments))
            return original(*arguments, **named)

        setattr(assembly, name, function)

    told("limit_waiting", lambda limit: f"wait {limit}")
    told("check_inputs", lambda *_: "check")
    told("build_source_blend", lambda *_: "index")
    told("build_engine", lambda *_: "engine")
    Search(config)
    return happened


def test_ranks_wait_for_reading_and_indexing_longer_than_for_a_collective(
    search_values: dict,
) -> None:
    config = load(search_values, **{"engine.distributed_timeout_minutes": 7})
    ((first, *others),) = run_ranks(1, waits_of_a_start, config)
    assert first == f"wait {assembly.INDEXING_LIMIT}"
    assert others == ["check", "index", "wait 0:07:00", "engine"]


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


def unreadable(config: SearchConfig) -> str:
    rank = torch.distributed.get_rank()
    os.environ["LOCAL_RANK"] = str(rank)
    MEMO.clear()

    def fails(path: str, *_: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    identity._sample = fails  # type: ignore[assignment]  # of this rank's own process
    with pytest.raises(DataError if rank else OSError) as found:
        Search(config)
    return str(found.value)


def test_a_file_that_one_host_cannot_read_ends_all(search_values: dict) -> None:
    first, second = run_ranks(2, unreadable, load(search_values))
    assert first.startswith("[Errno 5] Input/output error: ")
    assert second == "the inputs: another rank was refused them, as it says"

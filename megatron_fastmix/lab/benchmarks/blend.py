"""What our blend costs beside Megatron-core's `BlendedDataset`, over the same datasets.

Both read 17 real `GPTDataset`s. Megatron's blend refuses datasets that are shorter than it asks
for, so these claim as many samples as it needs and repeat the few that they have: the blend's own
cost grows with the claimed length, that of reading a sample does not.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from megatron.core.datasets.utils import Split

from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset
from megatron_fastmix.blend.live_mixture import LiveMixture
from megatron_fastmix.blend.options import BlendOptions
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.lab.measurements import Measurement

OURS_ALONE = 10**10
"""Samples of the blend that Megatron's cannot open: its arrays would take 100 GB."""

_BLOCK_SIZE = 1024
_WARM_UP = 1000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured; the figures of the README are those of the defaults."""

    largest: int = 10**8
    """Samples of the largest blend that both open; the others have a tenth and a hundredth."""
    sources: int = 17
    seq_length: int = 4096
    """Tokens of a sample. Shorter samples are read faster, which leaves less for the blend."""
    repetitions: int = 5
    """Measurements of each time, each in a process of its own; the median counts."""
    rounds: int = 10
    """Turns that the two blends take in one measurement of item access."""
    items: int = 200
    """Samples that each reads in a turn."""
    micro_batch_size: int = 4
    num_workers: int = 2
    """Workers of the DataLoader, by default as many as Megatron's."""


class _Long(GPTDataset):
    """A GPT dataset that claims more samples than it has."""

    claimed = 0

    def __len__(self) -> int:
        return self.claimed

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor]:
        return super().__getitem__(None if idx is None else idx % (len(self.shuffle_index) - 1))


def measure(folder: Path, settings: Settings, report: Callable[[str], None]) -> list[Measurement]:
    """Writes datasets to `folder` and measures; `report` gets a line for each step."""
    datasets = _datasets(folder, settings)
    sizes = [settings.largest // 100, settings.largest // 10, settings.largest]
    opened: dict[tuple[str, int], float] = {}
    resident: dict[tuple[str, int], float] = {}
    rows = []
    for size in [*sizes, OURS_ALONE]:
        for name, make in _MAKERS.items():
            if name == "Megatron's" and size == OURS_ALONE:
                continue
            many = [_apart(_open, make, datasets, size) for _ in range(settings.repetitions)]
            opened[name, size] = statistics.median(seconds for seconds, _ in many)
            resident[name, size] = statistics.median(memory for _, memory in many)
            report(
                f"{size:.0e} samples, {name}: opened in {opened[name, size]:.3g} s, "
                f"{resident[name, size] / 1e6:.3f} MB"
            )
            label = f"{name}, {size:.0e} samples"
            rows += [
                _row(f"open: {label}", opened[name, size], "s"),
                _row(f"memory: {label}", resident[name, size], "bytes"),
            ]
    top = settings.largest
    flat = opened["ours", OURS_ALONE] / opened["ours", top]
    rows += [
        _ratio(
            f"open: Megatron's / ours, {top:.0e} samples",
            opened["Megatron's", top] / opened["ours", top],
            1000,
            better="higher",
        ),
        _ratio(f"open: ours, {OURS_ALONE:.0e} / {top:.0e} samples", flat, 1.2),
        _ratio(
            f"memory: ours / Megatron's, {top:.0e} samples",
            resident["ours", top] / resident["Megatron's", top],
            0.001,
        ),
    ]
    for size in [*sizes, OURS_ALONE]:
        for what, read in (("random access", _random), ("DataLoader", _sequential)):
            peer = min(size, top)
            ours, theirs = _apart(_compete, datasets, size, peer, read, settings)
            label = f"{size:.0e} samples" + ("" if size == peer else f" beside {peer:.0e}")
            report(f"{what}, {label}: ours {1 / ours:.0f}/s, Megatron's {1 / theirs:.0f}/s")
            rows += [
                _row(f"{what}: ours, {label}", 1 / ours, "samples/s", better="higher"),
                _row(f"{what}: Megatron's, {label}", 1 / theirs, "samples/s", better="higher"),
                _ratio(f"{what}: time per sample, ours / Megatron's, {label}", ours / theirs, 1.1),
            ]
    return rows


def _megatrons(datasets: list[Any], size: int) -> Any:
    return BlendedDataset(datasets, _weights(len(datasets)), size, datasets[0].config)


def _ours(datasets: list[Any], size: int) -> Any:
    weights = _weights(len(datasets))
    names = [dataset.dataset_path for dataset in datasets]
    mixture = LiveMixture(dict(zip(names, weights, strict=True)), block_size=_BLOCK_SIZE)
    options = BlendOptions(weighting="sampling", block_size=_BLOCK_SIZE)
    return FastMixBlendedDataset(
        datasets, weights, size, datasets[0].config, mixture=mixture, options=options
    )


_MAKERS: dict[str, Callable[[list[Any], int], Any]] = {"Megatron's": _megatrons, "ours": _ours}


def _weights(count: int) -> list[float]:
    return [1.0 / (k + 1) for k in range(count)]


def _datasets(folder: Path, settings: Settings) -> list[Any]:
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    generator = np.random.default_rng(0)
    config = GPTDatasetConfig(
        random_seed=5,
        sequence_length=settings.seq_length,
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    datasets = []
    _Long.claimed = settings.largest
    for k in range(settings.sources):
        prefix = str(folder / f"source{k}")
        writer = IndexedDatasetBuilder(
            f"{prefix}.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size)
        )
        count = 0
        while count * 1000 < 64 * settings.seq_length:
            length = int(generator.integers(200, 1800))
            document = torch.from_numpy(generator.integers(0, 256, length))
            writer.add_document(document, [length])
            count += 1
        writer.finalize(f"{prefix}.idx")
        indices = np.arange(count, dtype=np.int32)
        datasets.append(_Long(IndexedDataset(prefix), prefix, indices, None, Split.train, config))
    return datasets


def _open(make: Callable[[list[Any], int], Any], datasets: list[Any], size: int) -> Any:
    """(seconds to open, bytes that are resident after it and after some draws)."""
    # The first one loads code and starts allocators, which is no cost of a blend; it is kept, so
    # that the second cannot have its memory.
    first = make(datasets, _WARM_UP)
    for i in range(_WARM_UP):
        first[i]
    gc.collect()
    before = _resident_bytes()
    start = time.perf_counter()
    blend = make(datasets, size)
    seconds = time.perf_counter() - start
    for i in range(0, size, max(1, size // _WARM_UP)):
        blend[i]
    gc.collect()
    return seconds, max(_resident_bytes() - before, os.sysconf("SC_PAGE_SIZE"))


def _compete(
    datasets: list[Any],
    size: int,
    peer_size: int,
    read: Callable[[Any, int, Settings], float],
    settings: Settings,
) -> tuple[float, float]:
    """Median seconds per sample of ours and of Megatron's, which take turns."""
    blends = [_ours(datasets, size), _megatrons(datasets, peer_size)]
    times: list[list[float]] = [[], []]
    for turn in range(settings.rounds + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            seconds = read(blends[which], turn, settings)
            if turn:
                times[which].append(seconds / settings.items)
    return statistics.median(times[0]), statistics.median(times[1])


def _random(blend: Any, turn: int, settings: Settings) -> float:
    # Not through NumPy scalars, which samplers do not hand out.
    indices = np.random.default_rng(turn).integers(0, len(blend), settings.items).tolist()
    start = time.perf_counter()
    for i in indices:
        blend[i]
    return time.perf_counter() - start


def _sequential(blend: Any, turn: int, settings: Settings) -> float:
    size = settings.micro_batch_size
    counted = settings.items // size
    # The first batches hide the workers' start, the last, which are left, their end.
    spare = 4 * max(1, settings.num_workers)
    first = turn * 10_007 % (len(blend) - (counted + 2 * spare) * size)
    starts = range(first, first + (counted + 2 * spare) * size, size)
    batches = [range(at, at + size) for at in starts]
    loader = iter(
        torch.utils.data.DataLoader(blend, batch_sampler=batches, num_workers=settings.num_workers)
    )
    for _ in range(spare):
        next(loader)
    start = time.perf_counter()
    for _ in range(counted):
        next(loader)
    return time.perf_counter() - start


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a forked process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(1)
        there.send(function(*arguments))

    process = context.Process(target=run)
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with code {process.exitcode}") from None
    finally:
        process.join()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _row(figure: str, value: float, unit: str, better: Any = "lower") -> Measurement:
    return Measurement(figure=figure, value=value, better=better, unit=unit)


def _ratio(figure: str, value: float, reach: float, better: Any = "lower") -> Measurement:
    return Measurement(figure=figure, value=value, reach=reach, better=better, unit="ratio")

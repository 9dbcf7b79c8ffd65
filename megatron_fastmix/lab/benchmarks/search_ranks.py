"""What each rank does while a search is measured."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.deepspeed_engine.engine import build_engine, learning_rate
from megatron_fastmix.deepspeed_engine.state import snapshot
from megatron_fastmix.search.inner_step import inner_step
from megatron_fastmix.search.loop import Search

TOKENIZER = "ByteLevelTokenizer"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured; the figures of the README are those of the defaults."""

    repetitions: int = 5
    """Measurements of each time; the median counts."""
    inner_steps: int = 20
    """n1."""
    global_batch_size: int = 128
    """Samples per optimizer step of the plain training that a search is compared with."""
    seq_length: int = 64
    probe_samples: int = 128
    """Probe samples per outer step at K = 4 and at K = 64."""
    hidden_size: int = 128
    """Width of the proxy whose times are measured."""
    memory_hidden_size: int = 768
    """Width of the proxy whose memory is measured, large beside the interpreter's noise."""
    limit_seconds: float = 1200.0
    """A measurement that takes longer is stopped."""


def write_sources(folder: Path, count: int, documents: int = 400, length: int = 500) -> None:
    """Sources s0 … and a target, of random bytes: what a step costs does not depend on the text."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = load_tokenizer(TOKENIZER).vocab_size
    generator = np.random.default_rng(0)
    for name in ("target", *(f"s{k}" for k in range(count))):
        builder = IndexedDatasetBuilder(
            str(folder / f"{name}.bin"), dtype=DType.optimal_dtype(vocab_size)
        )
        for _ in range(documents):
            builder.add_document(torch.from_numpy(generator.integers(0, 256, length)), [length])
        builder.finalize(str(folder / f"{name}.idx"))


def search_over_training(config: SearchConfig, settings: Settings) -> float:
    search = Search(config)
    plain = build_engine(config, search.inputs.tokenizer.vocab_size, search.group.size)
    ones = np.ones(len(config.sources))
    ratios = []
    with search.open_report() as report:
        for repetition in range(settings.repetitions + 1):
            seconds = [0.0, 0.0]
            # In turns, step by step, so that whatever else the machine does meets both alike.
            for step in range(settings.inner_steps):
                search.world.barrier()
                began = time.perf_counter()
                inner_step(plain, search.batches, repetition * settings.inner_steps + step, ones)
                search.world.barrier()
                between = time.perf_counter()
                search.inner_step(report)
                if search.step % settings.inner_steps == 0:
                    search.outer_step(report)
                search.world.barrier()
                seconds[0] += between - began
                seconds[1] += time.perf_counter() - between
            ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios[1:])


def outer_step_ratio(one: SearchConfig, other: SearchConfig, settings: Settings) -> float:
    searches = [_trained_for_one_step(config) for config in (one, other)]
    ratios = []
    for _ in range(settings.repetitions + 1):
        seconds = []
        for search in searches:
            search.world.barrier()
            began = time.perf_counter()
            search.outer_loop.step(learning_rate(search.config.training, 1))
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])


def bytes_reduced(config: SearchConfig) -> float:
    search = _trained_for_one_step(config)
    gradient = sum(getattr(p, "ds_numel", p.numel()) * 4 for p in search.engine.module.parameters())
    with counting_reduced_bytes() as count:
        search.outer_loop.step(learning_rate(config.training, 1))
    return count[0] / gradient


def v_gathered(config: SearchConfig) -> float:
    """Bytes of v that a rank gathers in an outer step, over v for each probe micro-batch."""
    search = _trained_for_one_step(config)
    v = sum(getattr(p, "ds_numel", p.numel()) * 4 for p in search.engine.module.parameters())
    micro_batches = len(search.batches.probe(0, search.mixture.weights))
    with counting_bytes({"all_gather_into_tensor": (0, 1.0)}) as count:
        search.outer_loop.step(learning_rate(config.training, 1))
    return count[0] / (v * micro_batches)


@contextmanager
def counting_reduced_bytes() -> Iterator[list[int]]:
    """Counts the bytes of this rank's reductions; gathering parameters is ZeRO's own.

    A reduce-scatter counts half: it moves half of what an all-reduce of the same tensor does.
    """
    with counting_bytes({"all_reduce": (0, 1.0), "reduce_scatter_tensor": (1, 0.5)}) as count:
        yield count


@contextmanager
def counting_bytes(of: Mapping[str, tuple[int, float]]) -> Iterator[list[int]]:
    """Counts the bytes of this rank's calls of collectives of torch.distributed by name: of which
    argument, and by what share. DeepSpeed's calls, but for reductions of ours, go elsewhere."""
    count = [0]
    originals = {name: getattr(dist, name) for name in of}

    def counting(name: str, tensor_at: int, share: float) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            tensor = arguments[tensor_at]
            if dist.get_world_size(keywords.get("group")) > 1:
                count[0] += int(tensor.numel() * tensor.element_size() * share)
            return originals[name](*arguments, **keywords)

        return call

    for name, (tensor_at, share) in of.items():
        setattr(dist, name, counting(name, tensor_at, share))
    try:
        yield count
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)


def extra_memory(config: SearchConfig) -> float:
    """Peak of an outer step above that of a training step, in gradients (of this rank's shard)."""
    # Buffers of 1 MiB and more return to the system when they are freed.
    ctypes.CDLL(None).mallopt(-3, 1 << 20)
    search = _trained_for_one_step(config)
    ones = np.ones(len(config.sources))
    peaks = []
    for step in range(1, 4):
        _reset_peak()
        inner_step(search.engine, search.batches, step, ones)
        plain = _peak()
        _reset_peak()
        search.outer_loop.step(learning_rate(config.training, step))
        peaks.append(_peak() - plain)
    shards = search.group.size if config.engine.zero_stage == 3 else 1
    gradient = sum(getattr(p, "ds_numel", p.numel()) * 4 for p in search.engine.module.parameters())
    return max(0.0, statistics.median(peaks) / (gradient / shards))


def checkpoint_pause(config: SearchConfig, settings: Settings) -> float:
    search = _trained_for_one_step(config)
    steps: list[float] = []
    pauses: list[float] = []
    for _ in range(settings.repetitions):
        for times, function in (
            (steps, lambda: inner_step(search.engine, search.batches, 0, np.ones(17))),
            (pauses, lambda: begin_checkpoint(search)),
        ):
            search.world.barrier()
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
        search.checkpoints.finish()
        search.step += 1
    return statistics.median(pauses) / statistics.median(steps)


def begin_checkpoint(search: Search) -> None:
    search.checkpoints.begin(search.state(), snapshot(search.engine, search.group))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Largest resident set since the last reset, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def _trained_for_one_step(config: SearchConfig) -> Search:
    search = Search(config)
    inner_step(search.engine, search.batches, 0, search.mixture.loss_weights)
    return search

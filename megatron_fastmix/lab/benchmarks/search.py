"""What a search costs beside plain DeepSpeed training of the same proxy.

Each figure is a ratio of two measurements of one run, on CPU ranks with gloo, alternating where
they are times. DS_ACCELERATOR=cpu must be set before this module is imported.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml

from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.deepspeed_engine.engine import build_engine, learning_rate
from megatron_fastmix.deepspeed_engine.state import snapshot
from megatron_fastmix.lab.benchmarks.table import Row
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.search.inner_step import inner_step
from megatron_fastmix.search.loop import Search

RANKS = 2
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


def measure(folder: Path, settings: Settings, say: Callable[[str], None]) -> list[Row]:
    """All rows; `folder` keeps the synthetic sources and the runs."""
    bench = Bench(folder, settings)
    rows = []
    for figure in (
        bench.start,
        bench.search_over_training,
        bench.sources,
        bench.estimators,
        bench.bytes_reduced,
        bench.memory,
        bench.checkpoints,
    ):
        say(f"measuring: {figure.__name__.replace('_', ' ')}")
        rows += figure()
    return rows


class Bench:
    """One method for each figure."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        write_sources(folder, 64)

    def config(self, name: str, sources: int, **changes: Any) -> SearchConfig:
        """A configuration with `sources` sources; changes are dotted keys, `__` for the dot."""
        settings = self.settings
        values = {
            "run_dir": str(self.folder / "runs" / name),
            "sources": [
                {"name": f"s{k}", "path": str(self.folder / f"s{k}")} for k in range(sources)
            ],
            "targets": [{"name": "target", "path": str(self.folder / "target")}],
            "tokenizer": {"tokenizer_type": TOKENIZER},
            "data": {"seq_length": settings.seq_length},
            "proxy": {"hidden_size": settings.hidden_size},
            "training": {
                "train_iters": 10**6,
                "global_batch_size": settings.global_batch_size,
                "lr_decay_style": "constant",
            },
            "mixture": {"inner_steps": settings.inner_steps},
            "hypergradient": {"target_samples": 32, "probe_samples_per_source": 4},
            "output": {"log_interval": 10**6},
        }
        flags = [f"--{key.replace('__', '.')}={value}" for key, value in changes.items()]
        merged = strict_yaml.apply_overrides(SearchConfig, values, flags)
        return strict_yaml.from_dict(SearchConfig, merged)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)` on all ranks; the result of rank 0."""
        limit = self.settings.limit_seconds
        return run_ranks(RANKS, function, *arguments, limit=limit)[0]

    def start(self) -> list[Row]:
        """From the command to the first inner step."""
        config = self.config("start", 17, training__train_iters=self.settings.inner_steps)
        file = self.folder / "start.yaml"
        file.write_text(yaml.safe_dump(strict_yaml.to_dict(config)))
        commands, imports = [], []
        for number in range(self.settings.repetitions + 1):
            began = time.time()
            subprocess.run(
                [sys.executable, "-c", "import torch, deepspeed, megatron.core"],
                check=True,
                capture_output=True,
            )
            imports.append(time.time() - began)
            run_dir = self.folder / "runs" / f"start{number}"
            began = time.time()
            subprocess.run(
                [
                    *(sys.executable, "-m", "megatron_fastmix.cli", "search"),
                    *("--config", str(file), "--num-ranks", str(RANKS), f"--run_dir={run_dir}"),
                ],
                check=True,
                capture_output=True,
            )
            lines = (run_dir / "metrics.jsonl").read_text().splitlines()
            first = next(line for line in map(json.loads, lines) if line["kind"] == "inner")
            commands.append(first["time"] - began)
        # The first of each compiles, and reads from the disk.
        command, once = statistics.median(commands[1:]), statistics.median(imports[1:])
        return [
            Row(
                figure="command to first inner step / importing torch, deepspeed, megatron.core",
                value=command / once,
                reach=1.5,
                better="lower",
                unit="ratio",
            ),
            Row(
                figure="command to first inner step",
                value=command,
                reach=None,
                better="lower",
                unit="s",
            ),
        ]

    def search_over_training(self) -> list[Row]:
        """Wall time of n1 steps with their outer step over n1 steps of plain training."""
        config = self.config("training", 17)
        ratio = self.run(_search_over_training, config, self.settings)
        return [
            Row(
                figure=f"search / plain training, n1 = {self.settings.inner_steps}",
                value=ratio,
                reach=1.05,
                better="lower",
                unit="ratio",
            )
        ]

    def sources(self) -> list[Row]:
        """An outer step at many sources over one at few."""
        few, many = (
            self.config(
                f"sources{count}",
                count,
                hypergradient__probe_samples_per_source=self.settings.probe_samples // count,
            )
            for count in (4, 64)
        )
        return [
            Row(
                figure="outer step, K = 64 / K = 4",
                value=self.run(_outer_step_ratio, many, few, self.settings),
                reach=1.10,
                better="lower",
                unit="ratio",
            )
        ]

    def estimators(self) -> list[Row]:
        """An outer step of the exact estimator over one of the default."""
        exact, default = (
            self.config(name, 17, hypergradient__estimator=name)
            for name in ("per_source", "finite_difference")
        )
        return [
            Row(
                figure="outer step, per_source / finite_difference, K = 17",
                value=self.run(_outer_step_ratio, exact, default, self.settings),
                reach=10,
                better="higher",
                unit="ratio",
            )
        ]

    def bytes_reduced(self) -> list[Row]:
        """Bytes that an outer step reduces over ranks, over one all-reduce of the gradient."""
        rows = []
        for stage in (2, 3):
            config = self.config(f"bytes{stage}", 17, engine__zero_stage=stage)
            rows.append(
                Row(
                    figure=f"bytes reduced by an outer step / a gradient all-reduce, ZeRO-{stage}",
                    value=self.run(_bytes_reduced, config),
                    reach=1.01,
                    better="lower",
                    unit="ratio",
                )
            )
        return rows

    def memory(self) -> list[Row]:
        """Peak memory that outer steps add to that of plain training."""
        rows = []
        for stage, unit in ((2, "gradients"), (3, "gradient shards")):
            config = self.config(
                f"memory{stage}",
                17,
                engine__zero_stage=stage,
                proxy__hidden_size=self.settings.memory_hidden_size,
                training__global_batch_size=16,
                hypergradient__probe_samples_per_source=1,
            )
            rows.append(
                Row(
                    figure=f"peak memory over plain training, ZeRO-{stage}",
                    value=self.run(_extra_memory, config),
                    reach=1.0,
                    better="lower",
                    unit=unit,
                )
            )
        return rows

    def checkpoints(self) -> list[Row]:
        """Time that training stands still for a checkpoint, which is written behind it."""
        config = self.config("checkpoints", 17)
        return [
            Row(
                figure="training stopped by a checkpoint / an inner step",
                value=self.run(_checkpoint_pause, config, self.settings),
                reach=1.0,
                better="lower",
                unit="ratio",
            )
        ]


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


def _search_over_training(config: SearchConfig, settings: Settings) -> float:
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


def _outer_step_ratio(one: SearchConfig, other: SearchConfig, settings: Settings) -> float:
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


def _bytes_reduced(config: SearchConfig) -> float:
    search = _trained_for_one_step(config)
    gradient = sum(getattr(p, "ds_numel", p.numel()) * 4 for p in search.engine.module.parameters())
    with _counting_reduced_bytes() as count:
        search.outer_loop.step(learning_rate(config.training, 1))
    return count[0] / gradient


@contextmanager
def _counting_reduced_bytes() -> Iterator[list[int]]:
    """Counts the bytes of this rank's reductions; gathering parameters is ZeRO's own.

    A reduce-scatter counts half: it moves half of what an all-reduce of the same tensor does.
    """
    count = [0]
    originals = {name: getattr(dist, name) for name in ("all_reduce", "reduce_scatter_tensor")}

    def counting(name: str, tensor_at: int, share: float) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            tensor = arguments[tensor_at]
            if dist.get_world_size(keywords.get("group")) > 1:
                count[0] += int(tensor.numel() * tensor.element_size() * share)
            return originals[name](*arguments, **keywords)

        return call

    dist.all_reduce = counting("all_reduce", 0, 1.0)
    dist.reduce_scatter_tensor = counting("reduce_scatter_tensor", 1, 0.5)
    try:
        yield count
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)


def _extra_memory(config: SearchConfig) -> float:
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


def _checkpoint_pause(config: SearchConfig, settings: Settings) -> float:
    search = _trained_for_one_step(config)
    steps: list[float] = []
    pauses: list[float] = []
    for _ in range(settings.repetitions):
        for times, function in (
            (steps, lambda: inner_step(search.engine, search.batches, 0, np.ones(17))),
            (pauses, lambda: _begin_checkpoint(search)),
        ):
            search.world.barrier()
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
        search.checkpoints.finish()
        search.step += 1
    return statistics.median(pauses) / statistics.median(steps)


def _begin_checkpoint(search: Search) -> None:
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

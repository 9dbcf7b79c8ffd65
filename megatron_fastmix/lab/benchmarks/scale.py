"""What the number of sources costs: to start, in a step, in an outer step, in files and in metrics.

Synthetic datasets of a few samples, so that what is measured is the number of sources and not their
size. Bytes are those that a rank reads by read(2), as /proc/self/io counts them; files that are
mapped are not in them. DS_ACCELERATOR=cpu must be set before this module is imported.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.lab.benchmarks.search_ranks import TOKENIZER, write_sources
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.lab.measurements import Measurement
from megatron_fastmix.search.inputs import check_inputs
from megatron_fastmix.search.loop import Search
from megatron_fastmix.start.claim import claim
from megatron_fastmix.start.limits import check_limits

SHARDED = 8
"""Sources of a search of many shards."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How many sources are tried."""

    sources: tuple[int, ...] = (10, 1_000, 10_000)
    """Each of one dataset."""
    shards: tuple[int, ...] = (16_000,)
    """Datasets of eight sources together."""
    ranks: int = 2
    steps: int = 4
    """Inner steps; two outer steps follow them."""
    limit_seconds: float = 7200.0
    """A search that takes longer is stopped."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds, and bytes read, of one part of a search on one rank."""

    seconds: float
    read: int


def measure(folder: Path, settings: Settings, say: Callable[[str], None]) -> list[Measurement]:
    """All rows; `folder` keeps the datasets and the runs."""
    data = folder / "data"
    most = max((*settings.sources, *settings.shards))
    say(f"writing {most:,} datasets")
    write_sources(data, most, documents=2, length=100)
    rows = []
    kinds = [(count, count, f"{count:,} sources") for count in settings.sources]
    kinds += [(count, SHARDED, f"{count:,} shards") for count in settings.shards]
    for count, sources, name in kinds:
        say(f"measuring: {name}")
        config = _config(data, folder / f"run{count}_{sources}", count, sources, settings)
        began = time.perf_counter()
        check_limits(config)
        check_inputs(config, settings.ranks)
        seconds = time.perf_counter() - began
        claim(config)
        limit = settings.limit_seconds
        found = run_ranks(settings.ranks, measure_search, config, settings, limit=limit)[0]
        rows += _measurements(name, {"check": Cost(seconds=seconds, read=0), **found})
    return rows


def measure_search(config: SearchConfig, settings: Settings) -> dict[str, Any]:
    """What this rank spends on each part of a short search. Every rank must call."""
    search, start = _cost(lambda: Search(config))
    inner, outer = [], []
    with search.open_report() as report:
        for step in range(1, settings.steps + 1):
            inner.append(_cost(lambda: search.inner_step(report))[1])
            if step * 2 % settings.steps == 0:
                outer.append(_cost(lambda: search.outer_step(report))[1])
    maps = len(Path("/proc/self/maps").read_text().splitlines())
    found = {"start": start, "files": len(os.listdir("/proc/self/fd")), "maps": maps}
    found |= {"inner": _median(inner), "outer": _median(outer)}
    if search.world.rank == 0:
        lines = search.folder.metrics.read_bytes().splitlines()
        for kind in ("run", "inner", "outer"):
            found[f"{kind} line"] = max(len(x) for x in lines if json.loads(x)["kind"] == kind)
    search.world.barrier()
    return found


def _cost(function: Callable[[], Any]) -> tuple[Any, Cost]:
    read, began = _bytes_read(), time.perf_counter()
    result = function()
    return result, Cost(seconds=time.perf_counter() - began, read=_bytes_read() - read)


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def _median(costs: list[Cost]) -> Cost:
    return Cost(
        seconds=statistics.median(cost.seconds for cost in costs),
        read=int(statistics.median(cost.read for cost in costs)),
    )


def _measurements(of: str, found: dict[str, Any]) -> list[Measurement]:
    names = {
        "check": "checks before the ranks start",
        "start": "start of a rank, after its imports",
        "inner": "inner step",
        "outer": "outer step",
    }
    rows = []
    for key, name in names.items():
        rows.append(Measurement(figure=f"{of}: {name}", value=found[key].seconds, unit="s"))
        if key != "check":
            read = found[key].read / 2**20
            rows.append(Measurement(figure=f"{of}: read in {name}", value=read, unit="MiB"))
    for key in ("files", "maps"):
        rows.append(Measurement(figure=f"{of}: {key} held by a rank", value=found[key], unit=key))
    for key in ("run line", "inner line", "outer line"):
        value = found[key] / 2**10
        rows.append(Measurement(figure=f"{of}: {key} of metrics.jsonl", value=value, unit="KiB"))
    return rows


def _config(data: Path, run: Path, datasets: int, sources: int, settings: Settings) -> SearchConfig:
    values = {
        "run_dir": str(run),
        "sources": [
            {"name": f"s{k}", "path": [str(data / f"s{i}") for i in range(k, datasets, sources)]}
            for k in range(sources)
        ],
        "targets": [{"name": "target", "path": str(data / "target")}],
        "tokenizer": {"tokenizer_type": TOKENIZER},
        "data": {"seq_length": 32},
        "proxy": {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2},
        "training": {
            "train_iters": settings.steps,
            "micro_batch_size": 32,
            "global_batch_size": 32 * settings.ranks,
            "lr_decay_style": "constant",
            "lr_warmup_iters": 0,
        },
        "mixture": {"inner_steps": max(1, settings.steps // 2)},
        "hypergradient": {"target_samples": 32, "probe_samples_per_source": 2},
        "output": {"log_interval": 10**6, "save_interval": 10**6},
    }
    config: SearchConfig = strict_yaml.from_dict(SearchConfig, values)
    return config

"""Whether long runs grow: memory, file handles and threads over many steps, resumes and reports.

One process, so that what one part leaves behind is seen in the next. DS_ACCELERATOR=cpu must be set
before this module is imported.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.lab.benchmarks.search_ranks import TOKENIZER, write_sources
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.lab.measurements import Measurement
from megatron_fastmix.report.write import read_runs, write_report
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.search.loop import Search
from megatron_fastmix.start.claim import claim

SETTLED = 0.4
"""The part of each soak after which nothing should grow any more: Matplotlib's pictures take the
memory that they need within the first 20 pages, and then no more."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long is soaked."""

    steps: int = 5000
    """Optimizer steps of one search."""
    resumes: int = 50
    """Searches built from a checkpoint, one after the other."""
    reports: int = 60
    """Pages written of the running search: `--watch` for ten minutes writes as many."""
    limit_seconds: float = 3600.0
    """A soak that takes longer is stopped."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a process holds."""

    memory_bytes: int
    """Resident."""
    files: int
    threads: int


def usage() -> Usage:
    """What this process holds now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Usage(
        memory_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        files=len(os.listdir("/proc/self/fd")),
        threads=threading.active_count(),
    )


def measure(folder: Path, settings: Settings, say: Callable[[str], None]) -> list[Measurement]:
    """Rows of each soak; `folder` keeps the synthetic sources and the runs."""
    write_sources(folder, 4)
    rows = []
    for name, soak, count in (
        ("steps", soak_steps, settings.steps),
        ("reports", soak_reports, settings.reports),
        ("resumes", soak_resumes, settings.resumes),
    ):
        say(f"soaking: {count} {name}")
        limit = settings.limit_seconds
        (first, last) = run_ranks(1, soak, config_of(folder, settings.steps), count, limit=limit)[0]
        rows += growth(f"{count:,} {name}", first, last)
    return rows


def growth(what: str, first: Usage, last: Usage) -> list[Measurement]:
    """What the process held at the end beside what it held once settled."""
    return [
        Measurement(
            figure=f"{what}: memory at the end / once settled",
            value=last.memory_bytes / first.memory_bytes,
            reach=1.05,
            better="lower",
            unit="ratio",
        ),
        *(
            Measurement(
                figure=f"{what}: {name} more at the end than once settled",
                value=getattr(last, name) - getattr(first, name),
                reach=0,
                better="lower",
                unit=name,
            )
            for name in ("files", "threads")
        ),
    ]


def config_of(folder: Path, steps: int) -> SearchConfig:
    """A search small enough that thousands of steps take minutes."""
    sources = [{"name": f"s{k}", "path": str(folder / f"s{k}")} for k in range(4)]
    values = {
        "run_dir": str(folder / "runs" / "soak"),
        "sources": sources,
        "targets": [{"name": "target", "path": str(folder / "target")}],
        "tokenizer": {"tokenizer_type": TOKENIZER},
        "data": {"seq_length": 32},
        "proxy": {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2},
        "training": {"train_iters": steps, "micro_batch_size": 4, "global_batch_size": 4},
        "mixture": {"inner_steps": 20},
        "hypergradient": {"target_samples": 4, "probe_samples_per_source": 2},
        "output": {"save_interval": 500, "log_interval": 10**6},
    }
    return strict_yaml.from_dict(SearchConfig, values)


def soak_steps(config: SearchConfig, steps: int) -> tuple[Usage, Usage]:
    """Usage after a part of the steps, and after all of them."""
    settled = round(SETTLED * steps)
    search = Search(config)
    claim(config)
    original, seen = search.inner_step, []

    def noted(report: object) -> bool:
        stop = original(report)  # type: ignore[arg-type]
        if search.step == settled:
            seen.append(usage())
        return stop

    search.inner_step = noted  # type: ignore[method-assign]
    search.run()
    return seen[0], usage()


def soak_reports(config: SearchConfig, count: int) -> tuple[Usage, Usage]:
    """Usage after a part of the pages, and after all of them."""
    folder = RunFolder(Path(config.run_dir))

    def write() -> None:
        write_report(read_runs([folder.path]), folder.report)

    return _before_and_after(write, count)


def soak_resumes(config: SearchConfig, count: int) -> tuple[Usage, Usage]:
    """Usage after a part of the resumes, and after all of them."""
    longer = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, train_iters=config.training.train_iters + 1),
    )

    def resume() -> None:
        # DeepSpeed's hooks hold an engine until its process ends, or this; a start has one.
        Search(longer).engine.destroy()

    return _before_and_after(resume, count)


def _before_and_after(repeat: Callable[[], object], count: int) -> tuple[Usage, Usage]:
    for _ in range(max(1, round(SETTLED * count))):
        repeat()
    first = usage()
    for _ in range(count - max(1, round(SETTLED * count))):
        repeat()
    return first, usage()

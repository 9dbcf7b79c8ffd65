"""What a search costs beside plain DeepSpeed training of the same proxy.

Each figure is a ratio of two measurements of one run, on CPU ranks with gloo, alternating where
they are times. DS_ACCELERATOR=cpu must be set before this module is imported.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from megatron_fastmix.config import ProxyConfig, SearchConfig, strict_yaml
from megatron_fastmix.lab.benchmarks.estimator_errors import estimator_errors
from megatron_fastmix.lab.benchmarks.outer_shares import outer_shares
from megatron_fastmix.lab.benchmarks.search_ranks import (
    TOKENIZER,
    Settings,
    bytes_reduced,
    checkpoint_pause,
    extra_memory,
    outer_step_ratio,
    search_over_training,
    v_gathered,
    write_sources,
)
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.lab.measurements import Measurement
from megatron_fastmix.run.folder import RunFolder

RANKS = 2


def measure(folder: Path, settings: Settings, say: Callable[[str], None]) -> list[Measurement]:
    """All rows; `folder` keeps the synthetic sources and the runs."""
    bench = Bench(folder, settings)
    rows = []
    for figure in (
        bench.start,
        bench.search_over_training,
        bench.sources,
        bench.estimators,
        bench.errors,
        bench.on_paper,
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

    def start(self) -> list[Measurement]:
        """From the command to the first inner step."""
        steps = self.settings.inner_steps
        config = self.config(
            "start", 17, training__train_iters=steps, training__lr_warmup_iters=min(20, steps)
        )
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
            lines = RunFolder(run_dir).metrics.read_text().splitlines()
            first = next(line for line in map(json.loads, lines) if line["kind"] == "inner")
            commands.append(first["time"] - began)
        # The first of each compiles, and reads from the disk.
        command, once = statistics.median(commands[1:]), statistics.median(imports[1:])
        return [
            Measurement(
                figure="command to first inner step / importing torch, deepspeed, megatron.core",
                value=command / once,
                reach=1.5,
                unit="ratio",
            ),
            Measurement(
                figure="command to first inner step",
                value=command,
                unit="s",
            ),
        ]

    def search_over_training(self) -> list[Measurement]:
        """Wall time of n1 steps with their outer step over n1 steps of plain training."""
        return [
            Measurement(
                figure=f"search / plain training, n1 = {self.settings.inner_steps}, probe: {probe}",
                value=self.run(
                    search_over_training,
                    self.config(f"training_{probe}", 17, hypergradient__probe=probe),
                    self.settings,
                ),
                reach=reach,
                unit="ratio",
            )
            for probe, reach in (("separate", 1.05), ("training", 1.03))
        ]

    def sources(self) -> list[Measurement]:
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
            Measurement(
                figure="outer step, K = 64 / K = 4",
                value=self.run(outer_step_ratio, many, few, self.settings),
                reach=1.05,
                unit="ratio",
            )
        ]

    def estimators(self) -> list[Measurement]:
        """An outer step of the exact estimator over one of the default."""
        exact, default = (
            self.config(name, 17, hypergradient__estimator=name)
            for name in ("per_source", "one_pass")
        )
        return [
            Measurement(
                figure="outer step, per_source / one_pass, K = 17",
                value=self.run(outer_step_ratio, exact, default, self.settings),
                reach=10,
                better="higher",
                unit="ratio",
            )
        ]

    def errors(self) -> list[Measurement]:
        """Of every estimator, against exact products in fp32 at the same weights."""
        proxy = ProxyConfig(hidden_size=self.settings.hidden_size)
        reach = {("one_pass", "fp32"): 1e-5, ("one_pass", "bf16"): 1e-2}
        limit = self.settings.limit_seconds
        rows = []
        for dtype in ("fp32", "bf16"):
            arguments = (dtype, proxy, self.settings.seq_length)
            (errors,) = run_ranks(1, estimator_errors, *arguments, limit=limit)
            rows += [
                Measurement(
                    figure=f"error of differences between sources, {name}, {dtype}",
                    value=error,
                    reach=reach.get((name, dtype)),
                    unit="relative",
                )
                for name, error in errors.items()
            ]
        return rows

    def on_paper(self) -> list[Measurement]:
        """Shares of outer steps in runs that this machine cannot make."""
        return outer_shares(self.config)

    def bytes_reduced(self) -> list[Measurement]:
        """Bytes that an outer step reduces over ranks, over one all-reduce of the gradient: v is
        reduced once, and with it a few numbers per source. Under ZeRO-3 v is gathered too, for
        each micro-batch of the probe."""
        rows = []
        for stage in (2, 3):
            config = self.config(f"bytes{stage}", 17, engine__zero_stage=stage)
            rows.append(
                Measurement(
                    figure=f"bytes reduced by an outer step / a gradient all-reduce, ZeRO-{stage}",
                    value=self.run(bytes_reduced, config),
                    reach=1.01,
                    unit="ratio",
                )
            )
        rows.append(
            Measurement(
                figure="v gathered by an outer step / v for each probe micro-batch, ZeRO-3",
                value=self.run(v_gathered, config),
                # Weights that are used twice, as tied ones, are gathered twice.
                reach=2.0,
                unit="ratio",
            )
        )
        return rows

    def memory(self) -> list[Measurement]:
        """Peak memory that outer steps add to that of plain training: at most v, in fp32, of which
        a rank holds a shard under ZeRO-3. Gradients, as large, are gone by then."""
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
                Measurement(
                    figure=f"peak memory over plain training, ZeRO-{stage}",
                    value=self.run(extra_memory, config),
                    reach=1.0,
                    unit=unit,
                )
            )
        return rows

    def checkpoints(self) -> list[Measurement]:
        """Time that training stands still for a checkpoint, which is written behind it."""
        config = self.config("checkpoints", 17)
        return [
            Measurement(
                figure="training stopped by a checkpoint / an inner step",
                value=self.run(checkpoint_pause, config, self.settings),
                reach=1.0,
                unit="ratio",
            )
        ]

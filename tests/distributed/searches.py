"""How the tests run a search on forked ranks, and what they read of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.deepspeed_engine.engine import build_engine
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.search.inner_step import inner_step
from megatron_fastmix.search.loop import Search
from megatron_fastmix.start.artifacts import write_run_artifacts
from megatron_fastmix.start.claim import claim

SAMPLING = {
    "mixture.weighting": "sampling",
    "mixture.optimizer": "scaled_mirror_descent",
    "mixture.lr": 0.5,
    "hypergradient.probe_allocation": "weighted",
}


def load(values: dict, **changes: Any) -> SearchConfig:
    """`values` with dotted changes, such as `**{"engine.zero_stage": 3}`."""
    flags = [f"--{key}={value}" for key, value in changes.items()]
    merged = strict_yaml.apply_overrides(SearchConfig, copy.deepcopy(values), flags)
    return strict_yaml.from_dict(SearchConfig, merged)


def parameters_of(search: Search) -> np.ndarray:
    """All parameters of the proxy, whole, on every rank."""
    import deepspeed

    parts = []
    for parameter in search.engine.module.parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            parts.append(parameter.detach().double().flatten().numpy().copy())
    return np.concatenate(parts)


def claim_once(config: SearchConfig) -> None:
    """Rank 0 claims the run folder: ranks that all did would find what another is just writing."""
    if torch.distributed.get_rank() == 0:
        claim(config)


def run_search(config: SearchConfig, stop_at: int | None = None) -> dict[str, Any]:
    """Runs a search to its end, or as if stopped by a signal after `stop_at` steps."""
    claim_once(config)
    search = Search(config)
    if stop_at is not None:
        original = search.batches.training

        def training(step: int, micro_step: int) -> Any:
            search.stop_signalled = step + 1 >= stop_at
            return original(step, micro_step)

        search.batches.training = training  # type: ignore[method-assign]
    complete = search.run()
    if search.world.rank == 0:
        write_run_artifacts(config.run_dir, search.result())
    return {
        "complete": complete,
        "logits": search.mixture.logits,
        "history": np.stack(search.mixture.history),
        "parameters": parameters_of(search),
        "losses": [
            line["loss"] for line in read_metrics(search.folder.metrics) if line["kind"] == "inner"
        ],
    }


def products_of(run_dir: str | Path) -> np.ndarray:
    """⟨v, ∇L_k⟩ of each outer step, (steps, K)."""
    lines = read_metrics(Path(run_dir) / "metrics.jsonl")
    return np.array([list(line["products"].values()) for line in lines if line["kind"] == "outer"])


def weights_of(run_dir: str | Path) -> dict[str, float]:
    """The learned weights by source."""
    sources = json.loads((Path(run_dir) / "mixture.json").read_text())["sources"]
    return {source["name"]: source["weight"] for source in sources}


def without_times(path: Path) -> list[dict[str, Any]]:
    moving = {
        "time",
        "seconds",
        "data_seconds",
        "tokens_per_second",
        "config",
    }  # the run folder is in the latter
    lines = [line for line in read_metrics(path) if line["kind"] not in ("checkpoint", "end")]
    return [{k: v for k, v in line.items() if k not in moving} for line in lines]


def plain_training(config: SearchConfig) -> dict[str, Any]:
    """DeepSpeed training of the same proxy on the same data, without any search."""
    search = Search(config)
    engine = build_engine(config, search.inputs.tokenizer.vocab_size, search.group.size)
    losses = []
    for step in range(config.training.train_iters):
        sums, counts = inner_step(engine, search.batches, step, np.ones(3))
        sums, counts = search.group.sum(np.stack([sums, counts]))
        losses.append(float(sums.sum() / counts.sum()))
    search.engine = engine
    return {"losses": losses, "parameters": parameters_of(search)}

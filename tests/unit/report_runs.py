"""Run folders of searches that never ran: metrics and result as a search of many outer steps over
any number of sources would have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_fastmix.result.learned_mixture import LearnedMixture, LearnedSource, TargetResult
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.result.sizes import Shard, Size
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.metrics import MetricsLog

STEPS, INNER = 400, 10


def write_search(
    path: Path, names: Sequence[str], *, seed: int = 1, budget: int = 10_000_000, **changes: Any
) -> Path:
    """Writes a finished search over `names` into `path`, which it returns; products pull the first
    sources up, the later the less. `changes` go into the configuration's part `mixture`."""
    run, count = RunFolder(path), len(names)
    rng = np.random.default_rng(seed)
    pull = np.linspace(1.0, -1.0, count)
    z = np.zeros(count)
    history = []
    config = {
        "run_dir": str(path),
        "seed": seed,
        "sources": [{"name": name, "path": f"/data/{name}"} for name in names],
        "training": {"train_iters": STEPS},
        "proxy": {"kind": "megatron", "num_layers": 12, "hidden_size": 768},
        "mixture": {"inner_steps": INNER, "averaging_fraction": 0.5, "lr": 0.1, **changes},
        "hypergradient": {"preconditioner": "none"},
    }
    clock = 1_750_000_000.0

    def by_name(values: np.ndarray) -> dict[str, float]:
        return dict(zip(names, values.tolist(), strict=True))

    with MetricsLog(run.metrics) as log:
        write = log.write
        start = by_name(np.full(count, 1 / count))
        write(
            "run", 0, sources=list(names), targets=["exams"], initial_weights=start, config=config
        )
        for step in range(1, STEPS + 1):
            clock += 0.5
            losses = by_name(8 * np.exp(-step / 200) + rng.normal(0, 0.1, count) + 0.1 * pull)
            figures = {"loss": 4.0, "source_loss": losses, "lr": 1e-3, "tokens": step * 65536}
            write("inner", step, **figures, tokens_per_second=131072.0, time=clock)
            if step % INNER == 0:
                clock += 1
                products = 1 + pull * np.exp(-step / 150) + rng.normal(0, 0.2, count)
                z += changes.get("lr", 0.1) * (pull + rng.normal(0, 0.3, count))
                weights = np.exp(z) / np.exp(z).sum()
                history.append(weights)
                write(
                    "outer",
                    step,
                    weights=by_name(weights),
                    products=by_name(products),
                    products_standard_error=dict.fromkeys(names, 0.2),
                    advantage_standard_error=dict.fromkeys(names, 0.2),
                    target_loss={"exams": 6 - 0.005 * step + float(rng.normal(0, 0.05))},
                    target_weight={"exams": 1.0},
                    noise_to_signal=0.5,
                    seconds=1.0,
                    time=clock,
                )
        write("end", STEPS, complete=True, training_flops=2.5e17, time=clock)
    tail = np.array(history[len(history) // 2 :])
    mean = tail.mean(axis=0) / tail.mean(axis=0).sum()
    sources = tuple(
        LearnedSource(
            name=name,
            shards=(Shard(path=f"/data/{name}", tokens=500_000, loss_tokens=500_000, rows=900),),
            documents=900,
            initial_weight=1 / count,
            final_weight=float(history[-1][k]),
            weight=float(mean[k]),
            weight_std=float(tail[:, k].std()),
            logit=float(z[k]),
            advantage=1e-3 * float(pull[k]),
            advantage_standard_error=2e-4,
        )
        for k, name in enumerate(names)
    )
    write_mixture(
        run.mixture,
        LearnedMixture(
            seq_length=2048,
            complete=True,
            steps=STEPS,
            outer_steps=len(history),
            averaging_fraction=0.5,
            averaged_outer_steps=len(tail),
            token_budget=budget,
            seed=seed,
            estimator="one_pass",
            sources=sources,
            targets=(
                TargetResult(
                    name="exams",
                    path="/data/exams",
                    tokens=3_000,
                    size=Size(tokens=3_000, loss_tokens=3_000, rows=30),
                    weight=1.0,
                    initial_loss=6.0,
                    final_loss=4.0,
                ),
            ),
            cost={"training_flops": 2.5e17, "wall_seconds": 240.0, "tokens": 2.6e7},
            versions={"megatron-fastmix": "1.0", "torch": "2.8.0"},
            config=config,
        ),
    )
    return path

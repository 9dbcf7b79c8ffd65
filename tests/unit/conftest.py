"""A finished search's result and metrics, as the loop writes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_fastmix.result.learned_mixture import (
    LearnedMixture,
    LearnedSource,
    TargetResult,
)
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.result.sizes import Shard, Size
from megatron_fastmix.run.metrics import MetricsLog
from tests.conftest import SEQ_LENGTH, SOURCES, synthetic_documents, write_dataset


@pytest.fixture(scope="session")
def make_mixture():
    """A function: weights by name (and changes to other fields) to a `LearnedMixture`."""

    def make(weights: dict[str, float], folder: str = "/data", **changes) -> LearnedMixture:
        values = {
            "seq_length": 32,
            "complete": True,
            "steps": 60,
            "outer_steps": 12,
            "averaging_fraction": 0.5,
            "averaged_outer_steps": 6,
            "token_budget": 10_000,
            "seed": 1,
            "estimator": "finite_difference",
            "sources": tuple(
                LearnedSource(
                    name=name,
                    shards=(
                        Shard(path=f"{folder}/{name}", tokens=5_000, loss_tokens=5_000, rows=50),
                    ),
                    documents=50,
                    initial_weight=1 / len(weights),
                    final_weight=weight,
                    weight=weight,
                    weight_std=0.01,
                    logit=0.1,
                )
                for name, weight in weights.items()
            ),
            "targets": (
                TargetResult(
                    name="target",
                    path=f"{folder}/target",
                    tokens=3_000,
                    size=Size(tokens=3_000, loss_tokens=3_000, rows=30),
                    weight=1.0,
                    initial_loss=5.5,
                    final_loss=4.25,
                ),
            ),
            "cost": {"training_flops": 1e12, "wall_seconds": 60.0, "tokens": 1e6},
            "versions": {"torch": "2"},
            "config": {"tokenizer": {"tokenizer_type": "ByteLevelTokenizer"}},
        }
        return LearnedMixture(**(values | changes))

    return make


@pytest.fixture(scope="session")
def with_sizes():
    """A function: a mixture and changes of shards by source name, such as `a={"path": "p"}`; one
    given `tokens` has as many loss tokens, and one given `documents` as many rows."""

    def change(mixture: LearnedMixture, **sizes) -> LearnedMixture:
        sources = []
        for source in mixture.sources:
            changes = dict(sizes.get(source.name, {}))
            if "tokens" in changes:
                changes.setdefault("loss_tokens", changes["tokens"])
            documents = changes.pop("documents", source.documents)
            changes.setdefault("rows", documents)
            shard = dataclasses.replace(source.shards[0], **changes)
            sources.append(dataclasses.replace(source, shards=(shard,), documents=documents))
        return dataclasses.replace(mixture, sources=tuple(sources))

    return change


@pytest.fixture
def make_metrics():
    """A function: writes the metrics of a search over `names` to a path."""

    def make(path: Path, names: list[str], outer_steps: int = 12) -> None:
        logits = np.zeros(len(names))
        with MetricsLog(path) as log:
            log.write("run", 0, initial_weights={n: 1 / len(names) for n in names})
            for step in range(1, outer_steps + 1):
                log.write("inner", step, loss=5.0)
                logits += np.linspace(0.2, -0.2, len(names))
                weights = np.exp(logits) / np.exp(logits).sum()
                log.write("outer", step, weights=dict(zip(names, weights, strict=True)))

    return make


@pytest.fixture
def scenario(search_values, corpora, tmp_path):
    """The file of a tiny scenario of the comparison of methods, with one variant."""
    del search_values["run_dir"]
    search_values["engine"] = {"zero_stage": 0}
    search_values["data"].pop("data_cache_path")
    compare = {
        "tests": [{"name": "target", "path": str(corpora / "target_backward")}],
        "model": search_values["proxy"],
        "training": {
            "train_iters": 4,
            "micro_batch_size": 4,
            "global_batch_size": 4,
            "lr_warmup_iters": 1,
        },
        "eval_samples": 8,
    }
    file = tmp_path / "tiny.yaml"
    often = {"name": "inner_steps=1", "overrides": ["--mixture.inner_steps=1"]}
    values = {"search": search_values, "compare": compare, "variants": [often]}
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="session")
def test_set(tmp_path_factory):
    """A held-out set like the search's target, but not the same."""
    prefix = tmp_path_factory.mktemp("evidence") / "test"
    write_dataset(prefix, synthetic_documents("forward", 40, 7), 259)
    return prefix


@pytest.fixture
def learned_file(corpora, tmp_path):
    """A learned mixture file that puts most weight on the useful source."""
    path = tmp_path / "run" / "mixture.json"
    learned = dict(zip(SOURCES, (0.9, 0.1, 0.0), strict=True))
    made = LearnedMixture(
        seq_length=SEQ_LENGTH,
        complete=True,
        steps=10,
        outer_steps=5,
        averaging_fraction=0.5,
        averaged_outer_steps=2,
        token_budget=1000,
        seed=1,
        estimator="finite_difference",
        sources=tuple(
            LearnedSource(
                name=name,
                shards=(Shard(path=str(corpora / name), tokens=7800, loss_tokens=7800, rows=120),),
                documents=120,
                initial_weight=(0.5, 0.25, 0.25)[k],
                final_weight=learned[name],
                weight=learned[name],
                weight_std=0.0,
                logit=0.0,
            )
            for k, name in enumerate(SOURCES)
        ),
        targets=(
            TargetResult(
                name="target",
                path=str(corpora / "target"),
                tokens=3900,
                size=None,
                weight=1.0,
                initial_loss=None,
                final_loss=None,
            ),
        ),
        cost={"training_flops": 1e9, "wall_seconds": 1.0, "tokens": 1e4},
        versions={},
        config={"tokenizer": {"tokenizer_type": "ByteLevelTokenizer", "tokenizer_model": None}},
    )
    write_mixture(path, made)
    return path

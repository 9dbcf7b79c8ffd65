"""The training inside a search: plain where the mixture is still, else weighted or sampled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.deepspeed_engine.engine import learning_rate
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.proxy.megatron_gpt import batch_losses, build_proxy
from megatron_fastmix.report.verdict import judge
from megatron_fastmix.report.write import read_runs
from megatron_fastmix.search.inner_step import inner_step
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.distributed.searches import (
    SAMPLING,
    load,
    parameters_of,
    plain_training,
    run_search,
)


@pytest.mark.parametrize("stage", [0, slow(1), slow(2), slow(3)])
def test_with_outer_learning_rate_zero_training_is_bitwise_plain(
    search_values: dict, tmp_path: Path, stage: int
) -> None:
    changes = {"engine.zero_stage": stage, "mixture.lr": 0}
    searched = run_ranks(2, run_search, load(search_values, **changes))[0]
    plain = run_ranks(
        2, plain_training, load(search_values, run_dir=tmp_path / "plain", **changes)
    )[0]
    assert searched["losses"] == plain["losses"]
    assert searched["parameters"].tobytes() == plain["parameters"].tobytes()


def test_the_engines_step_is_adamw_on_the_weighted_loss(search_values: dict) -> None:
    """The inner step against a loop of torch alone, at 2 ranks with accumulation and ZeRO-2."""
    # A large ε keeps Adam from amplifying rounding where a gradient is nearly 0.
    config = load(search_values, **{"training.weight_decay": 0, "training.adam_eps": 1e-3})
    weights = np.array([0.5, 1.5, 1.0])
    found = run_ranks(2, weighted_engine_steps, config, weights)[0]
    expected = run_ranks(1, weighted_torch_steps, config, weights)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def weighted_engine_steps(config: SearchConfig, weights: np.ndarray) -> np.ndarray:
    search = Search(config)
    for step in range(2):
        inner_step(search.engine, search.batches, step, weights)
    return parameters_of(search)


def weighted_torch_steps(config: SearchConfig, weights: np.ndarray) -> np.ndarray:
    search = Search(config)
    model = build_proxy(
        config.proxy,
        vocab_size=search.inputs.tokenizer.vocab_size,
        seq_length=config.data.seq_length,
        seed=config.seed,
    )
    training = config.training
    optimizer = torch.optim.AdamW(
        model.parameters(),
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_eps,
        weight_decay=0,
    )
    for step in range(2):
        optimizer.param_groups[0]["lr"] = learning_rate(training, step)
        samples = [search.batches.blend[12 * step + i] for i in range(12)]
        tensors = {
            key: torch.stack([s[key] for s in samples]) for key in ("tokens", "labels", "loss_mask")
        }
        factors = torch.tensor([weights[s["dataset_id"]] for s in samples])
        optimizer.zero_grad()
        (
            batch_losses(model, Batch.of_sources(np.zeros(12, dtype=int), **tensors)) * factors
        ).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_grad)
        optimizer.step()
    return np.concatenate([p.detach().double().flatten().numpy() for p in model.parameters()])


def sources_trained_on(config: SearchConfig) -> dict[str, Any]:
    search = Search(config)
    training, seen = search.batches.training, []

    def note(step: int, micro_step: int) -> Batch:
        batch = training(step, micro_step)
        seen.append((step, batch.index))
        return batch

    search.batches.training = note  # type: ignore[method-assign]
    search.run()
    counts = np.zeros((config.training.train_iters, 3))
    for step, group in seen:
        counts[step] += np.bincount(group, minlength=3)
    return {
        "counts": search.group.sum(counts),
        "history": np.stack(search.mixture.history),
        "factors": search.mixture.loss_weights,
    }


@pytest.mark.slow
def test_under_sampling_each_batch_has_the_sources_by_the_weights_of_its_step(
    search_values: dict,
) -> None:
    changes = {
        **SAMPLING,
        "mixture.initial_weights": "[6, 3, 1]",
        "mixture.lr": 1.0,
        "training.train_iters": 12,
    }
    found = run_ranks(2, sources_trained_on, load(search_values, **changes))[0]
    history = found["history"]
    for step, counts in enumerate(found["counts"]):
        assert np.all(np.abs(counts - 12 * history[step // 2]) < 1)
    np.testing.assert_allclose(history[0], [0.6, 0.3, 0.1])
    assert np.abs(history[-2] - history[0]).max() > 2 / 12  # so that the draws had to follow
    assert found["factors"].tolist() == [1.0, 1.0, 1.0]


def test_a_target_that_is_a_copy_stays_a_reservation(search_values: dict, tmp_path: Path) -> None:
    source, copy = search_values["sources"][0], str(tmp_path / "copied")
    for end in (".bin", ".idx"):
        shutil.copy(f"{source['path']}{end}", f"{copy}{end}")
    search_values["targets"][0]["path"] = copy
    config = load(search_values)
    run_ranks(1, run_search, config)
    texts = {found.text: found.level for found in judge(read_runs([config.run_dir])).findings}
    (text,) = [text for text in texts if f"has the content of source {source['name']}" in text]
    assert texts[text] == "fair"

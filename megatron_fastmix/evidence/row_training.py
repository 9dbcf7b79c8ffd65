"""One row: a fresh target model, plain Megatron data under static weights, plain training.

Nothing of the search is in here but the model's architecture, AdamW and the learning rate's shape:
the data are those that a user's Megatron run would read from the exported blend.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_fastmix.config import TargetConfig
from megatron_fastmix.corpus.tokenizers import Tokenizer, load_tokenizer
from megatron_fastmix.errors import NonFiniteError
from megatron_fastmix.evidence.config import Setting
from megatron_fastmix.evidence.rows import Row, Task

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Megatron lacks for GPUs is no news to a comparison
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    from megatron_fastmix.proxy.megatron_gpt import (
        build_proxy,
        initialize_world_of_one,
        token_losses,
        training_flops_per_token,
    )
    from megatron_fastmix.search.engine import build_optimizer, learning_rate

PACKAGES = ("megatron-fastmix", "megatron-core", "torch", "numpy")
EVALUATION_SEED = 0
"""Every row is evaluated on the same samples."""


def train_row(setting: Setting, task: Task, cache: Path) -> Row:
    """Trains and evaluates one row; `cache` is an empty folder of its own for Megatron's indices.

    Raises `NonFiniteError` where the loss is NaN or Inf.
    """
    began = time.monotonic()
    initialize_world_of_one()
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    training = setting.training
    tokenizer = load_tokenizer(setting.tokenizer.tokenizer_type, setting.tokenizer.tokenizer_model)
    blend = _blend(setting, task, tokenizer, cache)
    model = build_proxy(
        setting.model,
        vocab_size=tokenizer.vocab_size,
        seq_length=setting.seq_length,
        seed=task.seed,
    ).to(device)
    optimizer = build_optimizer(model, training)
    micro_batches = training.global_batch_size // training.micro_batch_size
    losses = []
    for step in range(training.train_iters):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step)
        total = 0.0
        for micro_batch in range(micro_batches):
            first = step * training.global_batch_size + micro_batch * training.micro_batch_size
            batch = _collate(blend, range(first, first + training.micro_batch_size), device)
            loss = token_losses(model, batch["tokens"], batch["labels"]).mean() / micro_batches
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise NonFiniteError(
                f"{task.candidate.name}, seed {task.seed}, step {step + 1}: the loss is {total}; "
                "lower --lr or raise --lr-warmup-iters"
            )
        if training.clip_grad:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)

    found = {}
    for test in setting.tests:
        config = TargetConfig(name=test.name, path=test.path)
        found[test.name] = _evaluate(setting, model, config, tokenizer, cache, device)
    shares = {test.name: test.weight for test in setting.tests}
    means = {name: float(np.mean(values)) for name, values in found.items()}
    loss = sum(shares[name] * mean for name, mean in means.items())
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"{task.candidate.name}, seed {task.seed}: the target loss is {loss}; lower --lr"
        )
    tokens = training.train_iters * training.global_batch_size * setting.seq_length
    per_token = training_flops_per_token(setting.model, tokenizer.vocab_size, setting.seq_length)
    return Row(
        setting=setting.digest,
        mixture=task.candidate.name,
        kind=task.candidate.kind,
        weights=task.candidate.weights,
        seed=task.seed,
        loss=loss,
        losses=means,
        sample_losses={name: [round(v, 5) for v in values] for name, values in found.items()},
        test_weights=shares,
        train_loss=float(np.mean(losses[-max(1, len(losses) // 10) :])),
        tokens=tokens,
        flops=tokens * per_token,
        wall_seconds=time.monotonic() - began,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        versions={name: version(name) for name in PACKAGES},
    )


def _blend(setting: Setting, task: Task, tokenizer: Tokenizer, cache: Path) -> Any:
    paths = {source.name: source.path for source in setting.sources}
    weights = {paths[name]: float(text) for name, text in task.candidate.weights.items()}
    blends = [(list(weights), list(weights.values())), None, None]
    samples = setting.training.train_iters * setting.training.global_batch_size
    return _build(setting, task.seed, tokenizer, cache, blends, [samples, 0, 0])[0]


def _build(
    setting: Setting, seed: int, tokenizer: Tokenizer, cache: Path, blends: Any, sizes: Any
) -> list[Any]:
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=setting.seq_length,
        blend_per_split=blends,
        path_to_cache=str(cache),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()


def _collate(dataset: Any, indices: range, device: torch.device) -> dict[str, torch.Tensor]:
    samples = [dataset[i] for i in indices]
    return {key: torch.stack([s[key] for s in samples]).to(device) for key in ("tokens", "labels")}


@torch.no_grad()
def _evaluate(
    setting: Setting,
    model: torch.nn.Module,
    test: TargetConfig,
    tokenizer: Tokenizer,
    cache: Path,
    device: torch.device,
) -> list[float]:
    """Mean loss of each of the test's first samples, in one fixed order."""
    blends = [None, ([test.path], None), None]
    sizes = [None, None, None]  # one epoch
    dataset = _build(setting, EVALUATION_SEED, tokenizer, cache, blends, sizes)[1]
    count = min(len(dataset), setting.eval_samples or len(dataset))
    size = setting.training.micro_batch_size
    found: list[float] = []
    for first in range(0, count, size):
        batch = _collate(dataset, range(first, min(first + size, count)), device)
        losses = token_losses(model, batch["tokens"], batch["labels"])
        found += losses.double().mean(dim=1).tolist()
    return found

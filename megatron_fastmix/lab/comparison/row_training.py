"""One row: a target model at its start, data under static weights, plain training.

Nothing of the search is in here but the model's architecture, AdamW and the learning rate's shape.
"""

from __future__ import annotations

import math
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, NonFiniteError
from megatron_fastmix.lab.comparison.config import Setting
from megatron_fastmix.lab.comparison.rows import Row, Task

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Megatron lacks for GPUs is no news to a comparison
    from megatron_fastmix.deepspeed_engine.engine import build_optimizer, learning_rate
    from megatron_fastmix.lab.comparison.row_checkpoint import Progress, RowCheckpoint
    from megatron_fastmix.lab.comparison.row_data import RowData
    from megatron_fastmix.lab.comparison.row_evaluation import batch_token_losses, evaluate
    from megatron_fastmix.parallel.device import local_device
    from megatron_fastmix.proxy.build import build_model
    from megatron_fastmix.proxy.cost import flops_per_token
    from megatron_fastmix.proxy.megatron_gpt import initialize_world_of_one

PACKAGES = ("megatron-fastmix", "megatron-core", "torch", "numpy")


def train_row(
    setting: Setting, task: Task, cache: Path, checkpoint: RowCheckpoint | None = None
) -> Row:
    """Trains and evaluates one row, from `checkpoint` on where there is one; `cache` is an empty
    folder of its own for Megatron's indices.

    Raises `NonFiniteError` where the loss is NaN or Inf, and `DataError` for a damaged checkpoint.
    """
    began = time.monotonic()
    initialize_world_of_one()
    device = local_device()
    training = setting.training
    tokenizer = load_tokenizer(**vars(setting.tokenizer))
    data = RowData(setting, task, tokenizer, cache, device)
    model = build_model(
        setting.model,
        vocab_size=tokenizer.vocab_size,
        seq_length=setting.seq_length,
        seed=task.seed,
    ).to(device)
    if setting.reset_attention_mask and getattr(model, "samples_run_alone", False):
        raise ConfigError(
            "data.reset_attention_mask of the search: this model carries what it read from one "
            "document of a row to the next, whatever it is told; compare on another model"
        )
    optimizer = build_optimizer(model, training)
    losses, progress = checkpoint.restore(model, optimizer) if checkpoint else ([], Progress())
    before = progress.seconds
    for step in range(progress.step, training.train_iters):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step)
        batches, total = data.step(step), 0.0
        learned = sum(float(batch.loss_mask.sum()) for batch in batches)
        for batch in batches:
            found = batch_token_losses(model, batch)
            loss = found.sum() / learned
            loss.backward()
            total += loss.item()
            progress.tokens += batch.num_tokens
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
        progress.step = step + 1
        if checkpoint and checkpoint.is_due(progress.step):
            progress.seconds = before + time.monotonic() - began
            checkpoint.save(model, optimizer, losses, progress)

    found = {test.name: evaluate(model, data.test(test)) for test in setting.tests}
    shares = {test.name: test.weight for test in setting.tests}
    means = {name: float(np.mean(of.losses)) for name, of in found.items()}
    loss = sum(shares[name] * mean for name, mean in means.items())
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"{task.candidate.name}, seed {task.seed}: the target loss is {loss}; lower --lr"
        )
    per_token = flops_per_token(setting.model, tokenizer.vocab_size, setting.seq_length)
    return Row(
        setting=setting.digest,
        mixture=task.candidate.name,
        kind=task.candidate.kind,
        weights=task.candidate.weights,
        schedule_key=task.candidate.schedule_key,
        seed=task.seed,
        loss=loss,
        losses=means,
        sample_losses={name: tuple(round(v, 5) for v in of.losses) for name, of in found.items()},
        sample_sizes={
            name: tuple(round(v, 5) for v in of.sizes) for name, of in found.items() if of.sizes
        },
        exact_match={
            name: of.exact_match for name, of in found.items() if of.exact_match is not None
        },
        train_loss=float(np.mean(losses[-max(1, len(losses) // 10) :])),
        tokens=progress.tokens,
        flops=progress.tokens * per_token,
        wall_seconds=before + time.monotonic() - began,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        versions={name: version(name) for name in PACKAGES},
    )

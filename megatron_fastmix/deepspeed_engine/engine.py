"""The DeepSpeed engine that trains the proxy, and the view of its parameters for the outer step."""

from __future__ import annotations

import math
from typing import Any

import torch

from megatron_fastmix.config import SearchConfig, TrainingConfig
from megatron_fastmix.deepspeed_engine.preconditioner import AdamPreconditioner
from megatron_fastmix.deepspeed_engine.settings import zero_config
from megatron_fastmix.deepspeed_engine.sharded_parameters import ShardedParameters
from megatron_fastmix.mixture.schedule import scheduled_rate
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.mpu import MegatronMPU
from megatron_fastmix.parallel.parameters import Parameters
from megatron_fastmix.proxy.build import build_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_engine(config: SearchConfig, vocab_size: int, data_parallel_size: int) -> Any:
    """A DeepSpeed engine around a fresh proxy. Every rank must call."""
    import deepspeed  # takes seconds, and the rest of this file serves without it

    training = config.training
    model = build_model(
        config.proxy,
        vocab_size=vocab_size,
        seq_length=config.data.seq_length,
        seed=config.seed,
        dtype=DTYPES[config.engine.dtype],
        tensor_model_parallel_size=config.engine.tensor_model_parallel_size,
    )
    optimizer = build_optimizer(model, training)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(training, step) / training.lr
    )
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=zero_config(config, data_parallel_size),
        mpu=MegatronMPU() if config.engine.tensor_model_parallel_size > 1 else None,
    )
    return engine


def build_optimizer(model: torch.nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters of `model`; `learning_rate` gives its schedule."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    plain = [p for p in trained if p.ndim <= 1]  # norms are not decayed, as in Megatron
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],  # adapters have no norms
        lr=training.lr,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_eps,
        weight_decay=training.weight_decay,
    )


def learning_rate(training: TrainingConfig, step: int) -> float:
    """η of optimizer step `step` (from 0): linear warm-up, then decay to min_lr at train_iters."""
    return scheduled_rate(
        step,
        peak=training.lr,
        final=training.min_lr,
        warmup=training.lr_warmup_iters,
        total=training.train_iters,
        style=training.lr_decay_style,
    )


def follow_schedule(engine: Any, step: int) -> None:
    """Sets the learning rate to that of optimizer step `step` (from 0), where DeepSpeed has not: of
    a step that it skips it leaves out the schedule's too, and the rate would no longer be that of
    the log, of the outer step and of a resumed search."""
    schedule = engine.lr_scheduler
    if schedule.last_epoch == step:
        return
    schedule.last_epoch = step
    schedule._last_lr = schedule.get_lr()
    for group, lr in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = lr


def gradient_norm(engine: Any) -> float | None:
    """Norm of the last step's gradient before clipping, NaN where it is NaN or Inf (DeepSpeed 0.19
    skips such a step); None in fp32 without ZeRO, where the engine has none."""
    norm = engine.get_global_grad_norm()
    if norm is None:
        return None
    value = float(norm)  # one read, which on an accelerator waits
    # ZeRO writes −1 in the place of NaN and Inf.
    return value if 0 <= value < math.inf else math.nan


def engine_parameters(
    engine: Any, group: DataParallelGroup, tensor_group: DataParallelGroup
) -> Parameters:
    """θ of the engine's model, in the form that its ZeRO stage keeps it in."""
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    sharers = tensor_group if tensor_group.size > 1 else None
    if engine.zero_optimization_stage() == 3:
        optimizer = engine.optimizer
        return ShardedParameters(
            parameters,
            group,
            optimizer.empty_partition_cache,
            sharers,
            list(getattr(optimizer, "leaf_parameters", ())),
        )
    return Parameters(parameters, group, sharers)


def whole_parameters(engine: Any, tensor: DataParallelGroup) -> int:
    """Parameters of the whole model, of which a rank may hold a shard or a tensor-parallel part."""
    return sum(
        getattr(parameter, "ds_numel", parameter.numel())
        * (tensor.size if getattr(parameter, "tensor_model_parallel", False) else 1)
        for parameter in engine.module.parameters()
    )


def engine_preconditioner(
    engine: Any, config: SearchConfig, group: DataParallelGroup, tensor_group: DataParallelGroup
) -> AdamPreconditioner | None:
    """What divides v, if anything."""
    if config.hypergradient.preconditioner == "none":
        return None
    training = config.training
    return AdamPreconditioner(engine, training.adam_beta2, training.adam_eps, group, tensor_group)

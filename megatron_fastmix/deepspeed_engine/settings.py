"""DeepSpeed's configuration: the search's part of it, and the user's, as far as a search stands it.

Imports neither torch nor DeepSpeed: what is refused is refused before a rank starts.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.text_files import read_json_object

OURS = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size and micro_batch_size",
    "gradient_clipping": "training.clip_grad",
    "zero_optimization.stage": "engine.zero_stage",
    "bf16.enabled": "engine.dtype",
    "steps_per_print": "the search's own log",
    "wall_clock_breakdown": "the search's own log",
    "zero_allow_untested_optimizer": "the search's AdamW",
}
"""Keys that the search sets itself, with where from; a file may repeat its value or say `auto`."""

REFUSED = {
    "optimizer": "the search builds AdamW from training.lr, adam_beta1, … itself",
    "scheduler": "the learning rate is training.lr, min_lr, lr_warmup_iters, lr_decay_style",
    "fp16": "the outer step takes gradients that no loss scaling reaches, in fp16 the small ones "
    "among them become 0, and on most CPUs DeepSpeed has no fp16: use engine.dtype bf16",
    "amp": "use engine.dtype bf16",
    "torch_autocast": "use engine.dtype bf16",
    "activation_checkpointing": "it sets up functions that no model here calls: use "
    "proxy.recompute_granularity full",
    "compile": "estimators read activations through hooks, which a compiled model leaves out",
    "elasticity": "it would change the batch, and with it which samples are drawn",
    "autotuning": "it would change the batch, and with it which samples are drawn",
    "curriculum_learning": "it would change what is drawn, which is what the search learns",
    "data_efficiency": "it would change what is drawn, which is what the search learns",
    "progressive_layer_drop": "losses must be functions of the parameters and the batch alone",
    "compression_training": "losses must be functions of the parameters and the batch alone",
    "quantize_training": "losses must be functions of the parameters and the batch alone",
    "sparse_attention": "the proxy's attention is its own",
    "pipeline": "ZeRO 2 and 3 exclude pipelines",
    "tensor_parallel": "use engine.tensor_model_parallel_size",
    "prescale_gradients": "DeepSpeed has it without reduce-scatter alone",
    "gradient_predivide_factor": "DeepSpeed has it without reduce-scatter alone",
    "hybrid_engine": "a search generates no text",
    "bf16.immediate_grad_update": "the outer step and checkpoints read the optimizer's gradients "
    "where they are by default",
    "zero_optimization.offload_param": "the outer step works on each rank's shards in the memory "
    "of its accelerator: offload the optimizer, or use proxy.recompute_granularity full",
    "zero_optimization.cpu_offload": "write zero_optimization.offload_optimizer",
    "zero_optimization.cpu_offload_params": "see zero_optimization.offload_param",
    "zero_optimization.zero_hpz_partition_size": "backward passes read the copy that hpZ keeps in "
    "each node, while a resume and a finite difference change the shards alone: a resumed search "
    "went on from other losses, and products were wrong by as much as they are",
    "zero_optimization.round_robin_gradients": "a search that was stopped and resumed ended with "
    "other parameters under it",
    "zero_optimization.mics_shard_size": "the outer step takes every data-parallel rank for the "
    "holder of one shard",
    "zero_optimization.mics_hierarchical_params_gather": "see zero_optimization.mics_shard_size",
    "zero_optimization.zero_quantized_weights": "what the outer step measures is smaller than the "
    "rounding of quantized weights",
    "zero_optimization.zero_quantized_nontrainable_weights": "what the outer step measures is "
    "smaller than the rounding of quantized weights",
    "zero_optimization.zero_quantized_gradients": "gradients of the outer step would round as much "
    "as they differ between sources",
    "zero_optimization.zeropp_loco_param": "see zero_optimization.zero_quantized_gradients",
    "zero_optimization.zenflow": "it updates parameters between steps, as the outer step reads "
    "them",
    "zero_optimization.offload_optimizer.ratio": "checkpoints hold the state of one optimizer, and "
    "a ratio makes two",
    "zero_optimization.offload_optimizer.nvme_path": "checkpoints read the optimizer's state from "
    "memory: use device cpu",
    "zero_optimization.offload_optimizer.super_offload": "checkpoints read the optimizer's state "
    "where DeepSpeed's own offload keeps it",
}
"""Keys that a search cannot stand, with the reason or the key to use."""

_FP32_NAMES, _BF16_NAMES = ("fp32", "float32", "float"), ("bf16", "bfloat16")
"""DeepSpeed's, without `torch.`."""

PASSED_ON = (
    "zero_optimization",
    "bf16",
    "communication_data_type",
    "comms_logger",
    "comms_config",
    "flops_profiler",
    "tensorboard",
    "wandb",
    "csv_monitor",
    "comet",
    "memory_breakdown",
    "dump_state",
    "data_types",
    "aio",
    "zero_force_ds_cpu_optimizer",
    "timers",
    "nebula",
)
"""Sections and keys that reach DeepSpeed as they are, but for those above."""


def zero_config(config: SearchConfig, data_parallel_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration. Raises `ConfigError` where `engine.deepspeed_config` contradicts
    it."""
    ours = {
        "train_batch_size": config.training.global_batch_size,
        "train_micro_batch_size_per_gpu": config.training.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation_steps(data_parallel_size),
        "gradient_clipping": config.training.clip_grad,
        "zero_optimization": {"stage": config.engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.engine.dtype == "bf16"},
        "steps_per_print": 1 << 60,
        "wall_clock_breakdown": False,
        # It would make the host wait for the accelerator twice a micro-batch, and nobody reads it.
        "timers": {"throughput": {"enabled": False}},
    }
    file = config.engine.deepspeed_config
    return ours if file is None else merged(ours, file)


def read_deepspeed_config(path: str | Path) -> dict[str, Any]:
    """The settings in a DeepSpeed JSON file. Raises `ConfigError` for one that a search cannot
    stand, by its name and with the reason; those it sets itself are for `merged` to compare."""
    settings = read_json_object(
        path, "engine.deepspeed_config", fix="give DeepSpeed's JSON file", error=ConfigError
    )
    for key, value in _leaves(settings):
        for named in _prefixes(key):
            if named in REFUSED and not _asks_for_nothing(key, value):
                raise ConfigError(
                    f"engine.deepspeed_config: {path}: {key}: found {value!r}; {REFUSED[named]}"
                )
        top = key.split(".")[0]
        if key not in OURS and top not in PASSED_ON and top not in REFUSED:
            known = [*PASSED_ON, *(name.split(".")[0] for name in (*OURS, *REFUSED))]
            near = difflib.get_close_matches(top, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(
                f"engine.deepspeed_config: {path}: unknown key {top}{hint}; a search passes on "
                f"{', '.join(PASSED_ON)}"
            )
    zero = _section(settings, "zero_optimization", path)
    device = _section(zero, "offload_optimizer", path).get("device")
    if device not in (None, "none", "cpu"):
        raise ConfigError(
            f"engine.deepspeed_config: {path}: zero_optimization.offload_optimizer.device: found "
            f"{device!r}; use cpu: checkpoints read the optimizer's state from memory"
        )
    return settings


def merged(ours: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """`ours`, DeepSpeed's settings of the search, with the file's beside them. Raises
    `ConfigError` where the two contradict each other."""
    theirs = read_deepspeed_config(path)
    result = copy.deepcopy(ours)
    for key, value in _leaves(theirs):
        if any(named in REFUSED for named in _prefixes(key)):
            continue
        *parents, last = key.split(".")
        section = result
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(
                    f"engine.deepspeed_config: {path}: {key}: {parent} is a section there, and is "
                    f"{section!r}; write that"
                )
        if key in OURS:
            found = section.get(last)
            if value not in (found, "auto"):
                raise ConfigError(
                    f"engine.deepspeed_config: {path}: {key}: found {value!r}, and the search has "
                    f"{found!r} from {OURS[key]}; change that, or leave the key out"
                )
            continue
        section[last] = value
    offload = result["zero_optimization"].get("offload_optimizer", {}).get("device") == "cpu"
    _check_accumulation(result, offload, path)
    if offload:
        # The search's AdamW is torch's, on any device; DeepSpeed's own would round otherwise.
        result.setdefault("zero_force_ds_cpu_optimizer", False)
    return result


def _check_accumulation(settings: dict[str, Any], offload: bool, path: str | Path) -> None:
    found = settings.get("data_types", {}).get("grad_accum_dtype")
    if found in (None, "auto"):
        return
    stage, bf16 = settings["zero_optimization"]["stage"], settings["bf16"]["enabled"]
    dtype = str(found).lower().removeprefix("torch.")
    if stage == 0 and dtype not in (_BF16_NAMES if bf16 else _FP32_NAMES):
        reason = "without ZeRO, DeepSpeed accumulates gradients in engine.dtype alone"
    elif stage == 1 and bf16 and not offload and dtype in _FP32_NAMES:
        reason = "at stage 1 DeepSpeed has an optimizer for it whose state checkpoints cannot read"
    else:
        return
    raise ConfigError(
        f"engine.deepspeed_config: {path}: data_types.grad_accum_dtype: found {found!r} with "
        f"engine.zero_stage {stage}; {reason}: use engine.zero_stage 2, or leave the key out"
    )


def _section(settings: dict[str, Any], name: str, path: str | Path) -> dict[str, Any]:
    section = settings.get(name, {})
    if not isinstance(section, dict):
        raise ConfigError(
            f"engine.deepspeed_config: {path}: {name}: found {section!r}; expected an object"
        )
    return section


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values; of a section that is switched off, that alone."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value.get("enabled") is False:
            yield f"{key}.enabled", False
        elif isinstance(value, dict) and value:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _prefixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _asks_for_nothing(key: str, value: Any) -> bool:
    if key.endswith(".ratio"):
        return bool(value == 1)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value in (False, None, "none", "auto", {}) or (is_number and value <= 1)

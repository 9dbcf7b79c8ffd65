"""What a search will take, before anything runs: arithmetic over its configuration and inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.proxy.cost import (
    flops_per_token,
    objective_samples,
    outer_step_forward_passes,
)
from megatron_fastmix.proxy.huggingface import count_parameters
from megatron_fastmix.proxy.megatron_cost import megatron_parameters
from megatron_fastmix.proxy.megatron_gpt import padded_vocab_size
from megatron_fastmix.proxy.provider import provided_parameters
from megatron_fastmix.search.inputs import Inputs
from megatron_fastmix.text_table import align

PEAK_TFLOPS = {"fp32": 67.0, "bf16": 989.0}
"""Dense peak of one H100 SXM (NVIDIA's data sheet)."""


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Bytes per rank under one ZeRO stage."""

    parameters: int
    gradients: int
    optimizer: int
    """Adam's moments, and the fp32 copy of the parameters that DeepSpeed keeps."""
    outer_step: int
    """v, in fp32. It is there only during an outer step, when gradients are not."""

    @property
    def total(self) -> int:
        """The most that is held at once, but for activations and gathered layers."""
        return self.parameters + self.optimizer + max(self.gradients, self.outer_step)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search on paper."""

    parameters: int
    trained_parameters: int
    """Fewer with LoRA."""
    tokens: float
    """Tokens that the inner steps train on."""
    training_flops: float
    outer_flops: float
    hours: float
    """At the stated utilisation."""
    memory: dict[int, StageMemory]
    """By ZeRO stage."""
    activations: float
    """Bytes per rank in a forward and backward pass of one micro-batch, about."""
    reduced_bytes: dict[int, float]
    """Bytes that each rank reduces in an outer step, by ZeRO stage; a reduce-scatter counts half of
    an all-reduce."""
    gathered_bytes: float
    """Bytes that each rank gathers in an outer step under ZeRO-3, parameters for every pass."""
    epochs: dict[str, float]
    """Epochs of each source in the search, which draws them evenly."""


def make_plan(
    config: SearchConfig, inputs: Inputs, *, ranks: int, tflops: float, utilisation: float
) -> Plan:
    """`tflops` is the peak of one rank, `utilisation` the share of it that is reached."""
    shards = config.data_parallel_size(ranks)
    split = config.engine.tensor_model_parallel_size
    vocab_size = inputs.tokenizer.vocab_size
    training, hypergradient = config.training, config.hypergradient
    parameters, trained = _parameters(config, vocab_size)
    samples = training.train_iters * training.global_batch_size
    per_sample = inputs.tokens_per_sample(config.data.seq_length)
    per_token = flops_per_token(config.proxy, vocab_size, config.data.seq_length)
    training_flops = samples * per_sample * per_token
    passes = config.outer_steps * outer_step_forward_passes(config)
    outer_flops = passes * per_sample * per_token / 3
    held, moved = parameters // split, trained // split
    size = 4 if config.engine.dtype == "fp32" else 2
    probe = hypergradient.probe_samples_per_source * len(config.sources)
    objective = objective_samples(config)
    micro_batches = sum(
        math.ceil(math.ceil(n / shards) / training.micro_batch_size) for n in objective
    )
    probe_passes = 2 * math.ceil(math.ceil(probe / shards) / training.micro_batch_size)
    probe_passes *= len(objective)
    alone = shards == 1
    layer_bytes = 34 * config.proxy.hidden_size * config.proxy.num_layers * size / 2
    logits = padded_vocab_size(config.proxy, vocab_size) * (2 * size + 4)
    return Plan(
        parameters=parameters,
        trained_parameters=trained,
        tokens=samples * per_sample,
        training_flops=training_flops,
        outer_flops=outer_flops,
        hours=(training_flops + outer_flops) / (ranks * tflops * 1e12 * utilisation) / 3600,
        memory={stage: _memory(held, moved, size, stage, shards) for stage in range(4)},
        activations=training.micro_batch_size
        * config.data.seq_length
        * (layer_bytes + logits)
        / split,
        reduced_bytes={
            stage: 0.0
            if alone
            else (4.0 * len(objective) if stage < 3 else 2.0 * micro_batches) * moved
            for stage in range(4)
        },
        gathered_bytes=0.0 if alone else float((2 * micro_batches + probe_passes) * size * held),
        epochs={
            source.name: samples / len(config.sources) * per_sample / inputs_of.tokens
            for source, inputs_of in zip(config.sources, inputs.sources, strict=True)
        },
    )


def _parameters(config: SearchConfig, vocab_size: int) -> tuple[int, int]:
    """All parameters, and those that are trained."""
    if config.proxy.kind == "huggingface":
        return count_parameters(config.proxy)
    if config.proxy.kind == "provider":
        return provided_parameters(config.proxy, vocab_size, config.data.seq_length)
    count = megatron_parameters(config.proxy, vocab_size, config.engine.tensor_model_parallel_size)
    return count, count


def _memory(held: int, moved: int, size: int, stage: int, shards: int) -> StageMemory:
    # DeepSpeed keeps its fp32 copy in every stage but 0, where fp32 parameters are their own.
    master = 4 * moved if stage or size < 4 else 0
    return StageMemory(
        parameters=size * held // (shards if stage == 3 else 1),
        gradients=size * moved // (shards if stage >= 2 else 1),
        optimizer=(8 * moved + master) // (shards if stage else 1),
        outer_step=4 * moved // (shards if stage == 3 else 1),
    )


def text(plan: Plan, config: SearchConfig, *, ranks: int, tflops: float, utilisation: float) -> str:
    """The plan as it is printed."""
    lora = plan.trained_parameters != plan.parameters
    lines = [
        f"parameters       {plan.parameters:,}"
        + (f", {plan.trained_parameters:,} of them trained" if lora else ""),
        f"tokens           {plan.tokens:,.0f} in {config.training.train_iters:,} steps, "
        f"{config.outer_steps:,} outer steps",
        f"FLOPs            {plan.training_flops:.3g} training, {plan.outer_flops:.3g} outer steps",
        f"hours            {plan.hours:.3g} on {ranks} ranks at {utilisation:.0%} of {tflops:g} "
        "TFLOP/s each",
        f"activations      about {plan.activations / 2**30:.3g} GiB per rank for a micro-batch, "
        "without recomputation",
        "",
    ]
    stages = [
        [
            f"{stage}" + (" (configured)" if stage == config.engine.zero_stage else ""),
            *(
                f"{value / 2**30:.3g}"
                for value in (
                    memory.parameters,
                    memory.gradients,
                    memory.optimizer,
                    memory.outer_step,
                    memory.total,
                )
            ),
            f"{plan.reduced_bytes[stage] / 2**20:,.4g}",
            f"{plan.gathered_bytes / 2**20 if stage == 3 else 0:,.4g}",
        ]
        for stage, memory in plan.memory.items()
    ]
    header = ["ZeRO", "params GiB", "grads", "optimizer", "v", "most", "MiB reduced", "gathered"]
    lines += ["Per rank, in an outer step the last two:", align(header, stages), ""]
    epochs = [[name, f"{number:.3g}"] for name, number in plan.epochs.items()]
    lines.append(align(["source", "epochs"], epochs))
    return "\n".join(lines)

"""What a search will take, before anything runs: arithmetic over its configuration and inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.proxy.cost import (
    flops_per_token,
    objective_samples,
    outer_step_tokens,
    proxy_parameters,
    separate_probe_samples,
)
from megatron_fastmix.search.budget import loss_tokens_per_sample, offered_shares
from megatron_fastmix.search.inputs import Inputs
from megatron_fastmix.search.start_mixture import start_mixture
from megatron_fastmix.start.memory import (
    StageMemory,
    activation_bytes,
    element_size,
    stage_memory,
)
from megatron_fastmix.text_table import align

RECOMPUTED = 4 / 3
"""Time of a forward and backward pass whose forward part is run again, over that without."""
PEAK_TFLOPS = {"fp32": 67.0, "bf16": 989.0}
"""Dense peak of one H100 SXM (NVIDIA's data sheet)."""
FEW_OUTER_STEPS = 100
"""Below it a mixture has hardly moved where it is going."""
MANY_EPOCHS = 4.0
"""Beyond it repeated text is worth less than fresh (Muennighoff et al., arXiv 2305.16264)."""
SHORT_HORIZON = 0.01
"""Share of the final run's tokens below which a plan warns. A judgment, not measured: on a public
table of 2,452 runs the optimum of a 122M model was worse than even shares at 30 % of the horizon
and nearly the best at all of it, but few can pay for that much."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search on paper."""

    parameters: int
    trained_parameters: int
    """Fewer with LoRA."""
    tokens: float
    """Tokens that the inner steps train on."""
    loss_tokens: float
    """Those of them in the loss."""
    training_flops: float
    outer_flops: float
    """Of the outer steps, `probe_flops` among them."""
    probe_flops: float
    """In fp32, in whichever precision the proxy trains: a finite difference of bf16 parameters
    would round away. 0 with other estimators, which stay in the precision of training."""
    hours: float
    """At the stated utilisation of the peak in each precision."""
    outer_hours: float
    """Those of `hours` that the outer steps take."""
    memory: dict[int, StageMemory]
    """By ZeRO stage."""
    activations: float
    """Bytes per rank in a forward and backward pass of one micro-batch, about."""
    reduced_bytes: dict[int, float]
    """Bytes that each rank reduces in an outer step, by ZeRO stage; a reduce-scatter counts half of
    an all-reduce."""
    gathered_bytes: float
    """Bytes that each rank gathers in an outer step under ZeRO-3: parameters for every pass, and
    v in fp32 for every backward pass of `one_pass`."""
    epochs: dict[str, float]
    """Epochs of each source in the search, of the share that a budget leaves it, were it drawn as
    at the start: by the weights, or evenly with `mixture.weighting: loss`."""
    start: dict[str, float]
    """The mixture that the search starts from, shares of loss tokens."""

    def most_memory(self, stage: int) -> float:
        """Bytes per rank at once, activations included."""
        return self.memory[stage].total + self.activations


def make_plan(
    config: SearchConfig,
    inputs: Inputs,
    *,
    ranks: int,
    tflops: float | None = None,
    utilisation: float = 0.3,
) -> Plan:
    """`tflops` is the peak of one rank (default: an H100's in each precision), `utilisation` the
    share of it that is reached."""
    shards = config.data_parallel_size(ranks)
    split = config.engine.tensor_model_parallel_size
    vocab_size = inputs.tokenizer.vocab_size
    training, hypergradient = config.training, config.hypergradient
    parameters, trained = proxy_parameters(config, vocab_size)
    samples = training.train_iters * training.global_batch_size
    per_sample = inputs.tokens_per_sample(config.data.seq_length)
    per_token = flops_per_token(config.proxy, vocab_size, config.data.seq_length)
    training_flops = samples * per_sample * per_token
    outer_tokens = config.outer_steps * outer_step_tokens(
        config,
        source_tokens=per_sample,
        target_tokens=inputs.tokens_per_target_sample(config.data.seq_length),
    )
    outer_flops = outer_tokens * per_token / 3
    held, moved = parameters // split, trained // split
    size = element_size(config)
    probe = separate_probe_samples(config)
    objective = objective_samples(config)
    micro_batches = sum(
        math.ceil(math.ceil(n / shards) / training.micro_batch_size) for n in objective
    )
    probe_batches = math.ceil(math.ceil(probe / shards) / training.micro_batch_size)
    one_pass = hypergradient.estimator == "one_pass"
    # That one serves all v at once; others take a probe for each.
    probe_passes = 2 * probe_batches * (1 if one_pass else len(objective))
    if hypergradient.probe == "training":
        probe_batches += config.accumulation_steps(shards)
    v_gathered = 4.0 * moved * probe_batches * len(objective) if one_pass else 0.0
    alone = shards == 1
    probe_flops = 0.0
    if hypergradient.estimator == "finite_difference":
        probe_flops = config.outer_steps * 2.0 * probe * len(objective) * per_sample * per_token / 3
    peaks = {name: tflops or peak for name, peak in PEAK_TFLOPS.items()}
    reached = ranks * 1e12 * utilisation
    outer_seconds = probe_flops / peaks["fp32"] / reached
    outer_seconds += (outer_flops - probe_flops) / peaks[config.engine.dtype] / reached
    seconds = training_flops / peaks[config.engine.dtype] / reached + outer_seconds
    gathers = 2.0
    if config.proxy.recompute_granularity == "full":
        gathers = 3.0
        outer_seconds *= RECOMPUTED
        seconds *= RECOMPUTED
    offered = offered_shares(config, inputs) or dict.fromkeys(config.source_names, 1.0)
    loss_tokens = [source.size.loss_tokens for source in inputs.sources]
    start = start_mixture(config, loss_tokens).weights.tolist()
    even = [1 / len(start)] * len(start)
    drawn = start if config.mixture.weighting == "sampling" else even
    # Averaged over the sources evenly: the mixture that they will be drawn by is not known yet.
    per_source = loss_tokens_per_sample(config, inputs)
    masked = config.data.reset_attention_mask or (
        config.data.packing and any(source.size.answer_only for source in inputs.sources)
    )
    return Plan(
        parameters=parameters,
        trained_parameters=trained,
        tokens=samples * per_sample,
        loss_tokens=samples * sum(per_source) / len(per_source),
        training_flops=training_flops,
        outer_flops=outer_flops,
        probe_flops=probe_flops,
        hours=seconds / 3600,
        outer_hours=outer_seconds / 3600,
        memory={
            stage: stage_memory(config, held=held, moved=moved, stage=stage, shards=shards)
            for stage in range(4)
        },
        activations=activation_bytes(config, vocab_size, masked=masked),
        reduced_bytes={
            stage: 0.0
            if alone
            else (4.0 * len(objective) if stage < 3 else 2.0 * micro_batches) * moved
            for stage in range(4)
        },
        gathered_bytes=0.0
        if alone
        else gathers * (micro_batches + probe_passes / 2) * size * held + v_gathered,
        epochs={
            source.name: samples
            * share
            / float(inputs_of.size.count("samples", config.data.seq_length))
            / offered[source.name]
            for source, inputs_of, share in zip(config.sources, inputs.sources, drawn, strict=True)
        },
        start=dict(zip(config.source_names, start, strict=True)),
    )


def estimated_time(hours: float) -> str:
    """To two digits, in hours, or in minutes or seconds below one of these."""
    if hours >= 1:
        return f"{hours:.2g} hours"
    minutes = 60 * hours
    return f"{minutes:.2g} minutes" if minutes >= 1 else f"{60 * minutes:.2g} seconds"


def verdict(plan: Plan, config: SearchConfig, memory_gib: float) -> str:
    """Whether it fits, and how long it takes, in one line."""
    stage = config.engine.zero_stage
    need = plan.most_memory(stage) / 2**30
    time = estimated_time(plan.hours)
    if 60 * plan.hours < 1:
        time += " of computing; steps this small wait for more than that"
    if need <= memory_gib:
        return f"Fits: about {need:.3g} of {memory_gib:g} GiB per rank; takes about {time}."
    fitting = [s for s in plan.memory if s > stage and plan.most_memory(s) / 2**30 <= memory_gib]
    wishes = [f"engine.zero_stage {fitting[0]}"] if fitting else []
    if plan.activations > 0.3 * plan.most_memory(stage):
        if config.proxy.kind != "provider":
            wishes += ["proxy.recompute_granularity full"]
        wishes += ["a smaller training.micro_batch_size"]
    wishes += ["more ranks"]
    return (
        f"Does not fit: about {need:.3g} GiB per rank, of {memory_gib:g}. "
        f"Use {', or '.join(wishes)}."
        f" It would take about {time}."
    )


def horizon(plan: Plan, budget: int) -> str:
    """The search's tokens beside those of the final run, both in the loss."""
    share = plan.loss_tokens / budget
    return f"{plan.loss_tokens:.3g} of the {budget:.3g} tokens to come, {share:.2%}"


def warnings(plan: Plan, config: SearchConfig, budget: int | None = None) -> list[str]:
    """What a plan shows to be unwise; `budget` are the tokens of the final run."""
    found = []
    if config.outer_steps < FEW_OUTER_STEPS:
        found.append(
            f"only {config.outer_steps} outer steps, and each moves the mixture a little: raise "
            f"training.train_iters or lower mixture.inner_steps to have {FEW_OUTER_STEPS} or more"
        )
    often = {name: n for name, n in plan.epochs.items() if n > MANY_EPOCHS}
    if often:
        names = ", ".join(f"{name} {n:.3g} times" for name, n in often.items())
        found.append(
            f"the search reads {names}: "
            + (
                "what the proxy knows by heart looks worthless; give these sources more text, or "
                "lower training.train_iters"
                if config.data.budget is None
                else "as often as the run of data.token_budget does at these shares"
            )
        )
    if budget is not None and plan.loss_tokens < SHORT_HORIZON * budget:
        found.append(
            f"the search sees {horizon(plan, budget)}: what helps so early need not help at the "
            "end, and the horizon matters more than the proxy's size; raise training.train_iters, "
            "with a smaller proxy if need be"
        )
    return found


def text(
    plan: Plan,
    config: SearchConfig,
    *,
    ranks: int,
    tflops: float | None = None,
    utilisation: float = 0.3,
    memory_gib: float = 80,
    budget: int | None = None,
) -> str:
    """The plan as it is printed; `budget` are the tokens of the final run."""
    lora = plan.trained_parameters != plan.parameters
    peak = f"{tflops or PEAK_TFLOPS[config.engine.dtype]:g} TFLOP/s"
    if plan.probe_flops and config.engine.dtype != "fp32":
        peak += f" (probe in fp32: {tflops or PEAK_TFLOPS['fp32']:g})"
    lines = [
        verdict(plan, config, memory_gib),
        *(f"Warning: {warning}." for warning in warnings(plan, config, budget)),
        "",
        f"parameters       {plan.parameters:,}"
        + (f", {plan.trained_parameters:,} of them trained" if lora else ""),
        f"tokens           {plan.tokens:,.0f} in {config.training.train_iters:,} steps, "
        f"{config.outer_steps:,} outer steps",
        *([] if budget is None else [f"horizon          {horizon(plan, budget)}"]),
        f"FLOPs            {plan.training_flops:.3g} training, {plan.outer_flops:.3g} outer steps"
        + (f" ({plan.probe_flops:.3g} of it the probe's)" if plan.probe_flops else ""),
        f"hours            {plan.hours:.3g} on {ranks} ranks at {utilisation:.0%} of {peak} each, "
        f"{plan.outer_hours / plan.hours:.2%} of them outer steps",
        f"activations      about {plan.activations / 2**30:.3g} GiB per rank for a micro-batch, "
        + ("recomputed" if config.proxy.recompute_granularity else "without recomputation"),
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
                    memory.buckets,
                    memory.gathered,
                    plan.most_memory(stage),
                )
            ),
            f"{plan.reduced_bytes[stage] / 2**20:,.4g}",
            f"{plan.gathered_bytes / 2**20 if stage == 3 else 0:,.4g}",
        ]
        for stage, memory in plan.memory.items()
    ]
    header = ["ZeRO", "params GiB", "grads", "optimizer", "v", "buckets", "gathered", "most"]
    header += ["MiB reduced", "MiB gathered"]
    lines += ["Per rank, in an outer step the last two:", align(header, stages), ""]
    epochs = [[name, f"{number:.3g}"] for name, number in plan.epochs.items()]
    sampling = config.mixture.weighting == "sampling"
    drawn = "epochs at the start mixture" if sampling else "epochs at even draws"
    lines.append(align(["source", drawn], epochs))
    return "\n".join(lines)

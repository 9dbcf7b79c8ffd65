"""What a rank of a search holds in its accelerator's memory, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.deepspeed_engine.settings import zero_config
from megatron_fastmix.proxy.huggingface import on_paper
from megatron_fastmix.proxy.megatron_cost import padded_vocab_size

BUCKET = 500_000_000
"""Elements of DeepSpeed's reduce_bucket_size by default."""
LIVE = 1_000_000_000
"""Elements of DeepSpeed's stage3_max_live_parameters by default."""


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Bytes per rank under one ZeRO stage."""

    parameters: int
    gradients: int
    optimizer: int
    """Adam's moments, and the fp32 copy of the parameters that DeepSpeed keeps; 0 where they are
    offloaded to the host."""
    outer_step: int
    """v, in fp32. It is there only during an outer step."""
    at_once: bool
    """Whether gradients are there beside v: only where training batches are the probe."""
    buckets: int
    """Buffers through which DeepSpeed reduces gradients, as large as configured however small the
    model is."""
    gathered: int
    """Parameters that ZeRO-3 holds whole at once, at most."""

    @property
    def total(self) -> int:
        """The most that is held at once, but for activations."""
        held = self.parameters + self.optimizer + self.buckets + self.gathered
        together = sum if self.at_once else max
        return held + together((self.gradients, self.outer_step))


def stage_memory(
    config: SearchConfig, *, held: int, moved: int, stage: int, shards: int
) -> StageMemory:
    """Of `held` parameters on a tensor-parallel rank, of which `moved` are trained."""
    size = element_size(config)
    zero = zero_config(config, shards)["zero_optimization"]
    # DeepSpeed keeps its fp32 copy in every stage but 0, where fp32 parameters are their own.
    master = 4 * moved if stage or size < 4 else 0
    offloaded = zero.get("offload_optimizer", {}).get("device") == "cpu" and stage > 0
    bucket = size * int(zero.get("reduce_bucket_size", BUCKET))
    # Stage 1 and 2 fill one buffer while the other is sent.
    buffers = (1 + bool(zero.get("overlap_comm", False))) if stage in (1, 2) else 1
    live = min(held, int(zero.get("stage3_max_live_parameters", LIVE)))
    return StageMemory(
        parameters=size * held // (shards if stage == 3 else 1),
        gradients=size * moved // (shards if stage >= 2 else 1),
        optimizer=0 if offloaded else (8 * moved + master) // (shards if stage else 1),
        outer_step=4 * moved // (shards if stage == 3 else 1),
        at_once=config.hypergradient.probe == "training",
        buckets=bucket * buffers if stage and shards > 1 else 0,
        gathered=size * live if stage == 3 and shards > 1 else 0,
    )


def activation_bytes(config: SearchConfig, vocab_size: int) -> float:
    """Bytes per rank in a forward and backward pass of one micro-batch, about.

    34 bytes a token, layer and unit of width in bf16 (Korthikanti et al., arXiv 2205.05198,
    equation 1 without the attention matrix, which is never whole here); recomputed, a layer's input
    and one layer whole. The logits count thrice: themselves, in fp32, and their gradient.
    """
    size, proxy = element_size(config), config.proxy
    if proxy.kind == "huggingface":
        model = on_paper(proxy)[0].get_text_config()
        width, layers, rows = model.hidden_size, model.num_hidden_layers, model.vocab_size
    else:
        width, layers = proxy.hidden_size, len(proxy.hybrid_layer_pattern or "") // 2
        layers = layers or proxy.num_layers
        rows = padded_vocab_size(proxy, vocab_size)
    layer = 34 * width * size / 2
    whole = layer * layers
    if proxy.recompute_granularity == "full":
        whole = layer + layers * width * size
    tokens = config.training.micro_batch_size * config.data.seq_length
    split = config.engine.tensor_model_parallel_size
    return tokens * (whole + rows * (2 * size + 4)) / split


def element_size(config: SearchConfig) -> int:
    """Bytes of a parameter in training."""
    return 4 if config.engine.dtype == "fp32" else 2

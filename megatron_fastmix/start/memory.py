"""What a rank of a search holds in its accelerator's memory, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.deepspeed_engine.settings import zero_config
from megatron_fastmix.proxy.cost import objective_samples
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
    """Every v that is held at once, in fp32. They are there only during an outer step."""
    at_once: bool
    """Whether gradients are there beside v: only where training batches are the probe."""
    buckets: int
    """Buffers through which DeepSpeed reduces gradients, as large as configured however small the
    model is."""
    gathered: int
    """Parameters that ZeRO-3 holds whole at once, at most."""
    at_start: int
    """All parameters: DeepSpeed moves the model to the accelerator before it shards it."""

    @property
    def total(self) -> int:
        """The most that is held at once, but for activations."""
        held = self.parameters + self.optimizer + self.buckets + self.gathered
        together = sum if self.at_once else max
        return max(self.at_start, held + together((self.gradients, self.outer_step)))


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
    vectors = len(objective_samples(config)) if config.hypergradient.estimator == "one_pass" else 1
    live = min(held, int(zero.get("stage3_max_live_parameters", LIVE)))
    return StageMemory(
        parameters=size * held // (shards if stage == 3 else 1),
        gradients=size * moved // (shards if stage >= 2 else 1),
        optimizer=0 if offloaded else (8 * moved + master) // (shards if stage else 1),
        outer_step=4 * moved * vectors // (shards if stage == 3 else 1),
        at_once=config.hypergradient.probe == "training",
        buckets=bucket * buffers if stage and shards > 1 else 0,
        gathered=size * live if stage == 3 and shards > 1 else 0,
        at_start=size * held,
    )


def activation_bytes(config: SearchConfig, vocab_size: int, *, masked: bool) -> float:
    """Bytes per rank in a forward and backward pass of one micro-batch, about.

    A token and layer has 10 + 8/t bytes a unit of width in bf16 on t tensor-parallel ranks
    (Korthikanti et al., arXiv 2205.05198, equation 2 without the attention matrix, which is never
    whole here, and the feed-forward's inner 16), and 6/t a unit of the feed-forward's own width:
    gate, value and their product. Recomputed, it has its input, and one layer is whole; but where
    training is the probe, what every linear module and norm reads is kept. Where documents or rows
    share a sequence (`masked`), the mask and what it adds to scores are kept once. The logits count
    thrice: themselves, in fp32, and their gradient.
    """
    size, proxy, shape = element_size(config), config.proxy, _shape(config, vocab_size)
    split = config.engine.tensor_model_parallel_size
    layer = size / 2 * (10 * shape.width + (8 * shape.width + 6 * shape.inner) / split)
    whole = layer * shape.layers
    if proxy.recompute_granularity == "full":
        kept = shape.width
        if config.hypergradient.probe == "training":
            kept = 4 * shape.width + (shape.width + shape.inner) // split
        whole = layer + shape.layers * size * kept
    batch, length = config.training.micro_batch_size, config.data.seq_length
    mask = batch * length**2 * (1 + size) if masked else 0
    return batch * length * (whole + shape.rows * (2 * size + 4) / split) + mask


@dataclass(frozen=True, kw_only=True)
class _Shape:
    layers: int
    width: int
    inner: int
    """Width of the feed-forward; with experts of those that a token is sent to, and of its copies
    on the way to them and back."""
    rows: int
    """Of the output layer."""


def _shape(config: SearchConfig, vocab_size: int) -> _Shape:
    proxy = config.proxy
    if proxy.kind == "huggingface":
        model = on_paper(proxy)[0].get_text_config()
        width = model.hidden_size
        inner = getattr(model, "intermediate_size", None) or 8 * width // 3
        expert = getattr(model, "moe_intermediate_size", None) or inner
        topk = getattr(model, "num_experts_per_tok", None)
        return _Shape(
            layers=model.num_hidden_layers,
            width=width,
            inner=_inner(width, inner, expert, topk),
            rows=model.vocab_size,
        )
    width, topk = proxy.hidden_size, proxy.num_experts and proxy.moe_router_topk
    inner = _inner(width, proxy.feed_forward_size, proxy.expert_size, topk)
    layers = len(proxy.hybrid_layer_pattern or "") // 2 or proxy.num_layers
    rows = padded_vocab_size(proxy, vocab_size)
    return _Shape(layers=layers, width=width, inner=inner, rows=rows)


def _inner(width: int, feed_forward: int, expert: int, topk: int | None) -> int:
    return topk * (expert + 2 * width // 3) if topk else feed_forward


def element_size(config: SearchConfig) -> int:
    """Bytes of a parameter in training."""
    return 4 if config.engine.dtype == "fp32" else 2

"""The small model that is trained during the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_fastmix.config.require import (
    require,
    require_at_least,
    require_positive,
    set_paths_as_in_a_shell,
)

_SIZES = (
    *("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "kv_channels"),
    *("rotary_base", "ffn_hidden_size", "num_experts", "moe_router_topk", "moe_ffn_hidden_size"),
    "make_vocab_size_divisible_by",
)
"""Keys that count something there is at least one of."""


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """The small model that is trained during the search: a Megatron-core model of the sizes below,
    a pretrained Hugging Face model, or the team's own.

    Fields that Megatron has a flag for have its name.
    """

    kind: Literal["megatron", "huggingface", "provider"] = "megatron"
    """`huggingface` needs the extra of that name, and takes its sizes from `path`; `provider` is a
    function of yours."""
    provider: str | None = None
    """`module:function` that builds the model of proxy.kind provider; `proxy/provider.py` says what
    it is given and what it must return."""
    path: str | None = None
    """Directory of a Hugging Face causal language model (config.json, safetensors, tokenizer), or
    its name on the hub."""
    lora_rank: int = 0
    """Rank of LoRA adapters on every linear layer of a Hugging Face model; 0 trains all of it."""
    lora_alpha: float = 16.0
    """Scale of the adapters: their product counts lora_alpha / lora_rank times."""
    checkpoint: str | None = None
    """From where a Megatron proxy starts: the run folder of an earlier search, or a distributed
    checkpoint of Megatron (`iter_…`, or the folder above for its newest), as with --load. Parallel
    sizes may differ."""
    num_layers: int = 4
    """Transformer layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_attention_heads: int = 4
    """Attention heads; must divide hidden_size unless kv_channels is given."""
    num_query_groups: int | None = None
    """Heads of keys and values, each shared by as many heads of queries (grouped-query attention);
    must divide num_attention_heads. Default: as many as those."""
    kv_channels: int | None = None
    """Width of a head; default hidden_size / num_attention_heads."""
    rotary_base: int = 10_000
    """Base of the rotary positions' periods."""
    rotary_percent: float = 1.0
    """Share of a head's width that is rotated."""
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    """Norm before attention, before the feed-forward and at the end."""
    qk_layernorm: bool = False
    """Whether queries and keys are normalised, head by head."""
    ffn_hidden_size: int | None = None
    """Width of the SwiGLU feed-forward; default 8/3 of hidden_size, rounded up to 32."""
    num_experts: int | None = None
    """Experts in every layer's feed-forward, each of `moe_ffn_hidden_size`; none by default. No
    token is dropped, and no auxiliary loss balances them: it would tie samples together."""
    moe_router_topk: int = 2
    """Experts that a token is sent to."""
    moe_ffn_hidden_size: int | None = None
    """Width of an expert; default that of the feed-forward."""
    hybrid_layer_pattern: str | None = None
    """Layers one by one of a Megatron-core HybridModel, such as `M-M*-`: M Mamba (on GPUs, with the
    package mamba-ssm), * attention, - feed-forward, E experts; `num_layers` then says nothing.
    None is a GPT."""
    recompute_granularity: Literal["full"] | None = None
    """`full` keeps only each layer's input for the backward pass and runs the layer again there,
    also in a Hugging Face model: a third more time for a fraction of the activations."""
    make_vocab_size_divisible_by: int = 128
    """Embedding rows are padded to a multiple of this times the tensor-parallel size."""
    untie_embeddings_and_output_weights: bool = False
    """Whether the output layer has weights of its own."""
    init_method_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self) -> None:
        set_paths_as_in_a_shell(self, ("path", "checkpoint"))
        pretrained = self.kind == "huggingface"
        require(
            pretrained == (self.path is not None),
            "proxy.path",
            self.path,
            "proxy.kind huggingface needs the model's directory, and no other kind takes one",
        )
        require(
            (self.kind == "provider") == (self.provider is not None),
            "proxy.provider",
            self.provider,
            "proxy.kind provider needs module:function, and no other kind takes one",
        )
        require(
            self.provider is None or len(list(filter(None, self.provider.split(":")))) == 2,
            "proxy.provider",
            self.provider,
            "write module:function, such as my_team.models:small_proxy",
        )
        require(
            self.lora_rank >= 0 and (pretrained or not self.lora_rank),
            "proxy.lora_rank",
            self.lora_rank,
            "adapters are for proxy.kind huggingface; use 0 without",
        )
        require(
            self.kind == "megatron" or not self.checkpoint,
            "proxy.checkpoint",
            self.checkpoint,
            "only proxy.kind megatron starts from one; huggingface starts from proxy.path, a "
            "provider from what it loads itself",
        )
        require_at_least(self, "proxy", 1, _SIZES)
        require_positive(self, "proxy", ("lora_alpha", "init_method_std"))
        if self.kind == "megatron":
            self._check_layers()

    def _check_layers(self) -> None:
        require(
            self.kv_channels is not None or self.hidden_size % self.num_attention_heads == 0,
            "proxy.num_attention_heads",
            self.num_attention_heads,
            f"it must divide hidden_size {self.hidden_size}, or proxy.kv_channels say how wide a "
            "head is",
        )
        require(
            0 < self.rotary_percent <= 1,
            "proxy.rotary_percent",
            self.rotary_percent,
            "use a share above 0, up to 1",
        )
        rotated = int(self.head_size * self.rotary_percent)
        require(
            rotated > 0 and rotated % 2 == 0,
            "proxy.num_attention_heads" if self.kv_channels is None else "proxy.kv_channels",
            self.num_attention_heads if self.kv_channels is None else self.kv_channels,
            f"heads of size {self.head_size} have {rotated} rotated elements, which must be even",
        )
        require(
            self.query_groups >= 1 and self.num_attention_heads % self.query_groups == 0,
            "proxy.num_query_groups",
            self.num_query_groups,
            f"it must divide num_attention_heads {self.num_attention_heads}",
        )
        require(
            self.num_experts is None or 1 <= self.moe_router_topk <= self.num_experts,
            "proxy.moe_router_topk",
            self.moe_router_topk,
            f"send a token to 1 up to num_experts {self.num_experts}",
        )
        require(
            self.num_experts is not None or self.moe_ffn_hidden_size is None,
            "proxy.moe_ffn_hidden_size",
            self.moe_ffn_hidden_size,
            "it is the width of an expert: set num_experts, too, or leave it out",
        )
        pattern = self.hybrid_layer_pattern
        require(
            pattern is None or (pattern != "" and set(pattern) <= set("M*-E")),
            "proxy.hybrid_layer_pattern",
            pattern,
            "write a letter a layer: M, *, - or E",
        )
        require(
            pattern is None or ("E" in pattern) == (self.num_experts is not None),
            "proxy.num_experts",
            self.num_experts,
            f"layers E of hybrid_layer_pattern {pattern} and num_experts go together",
        )

    @property
    def feed_forward_size(self) -> int:
        """`ffn_hidden_size`, or its default."""
        return self.ffn_hidden_size or -(-8 * self.hidden_size // 3 // 32) * 32

    @property
    def head_size(self) -> int:
        """`kv_channels`, or its default."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def query_groups(self) -> int:
        """`num_query_groups`, or its default."""
        return self.num_attention_heads if self.num_query_groups is None else self.num_query_groups

    @property
    def expert_size(self) -> int:
        """`moe_ffn_hidden_size`, or its default."""
        return self.moe_ffn_hidden_size or self.feed_forward_size

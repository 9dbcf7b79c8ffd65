"""The small model that is trained during the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_fastmix.config.require import require


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """The small model that is trained during the search: a Megatron-core GPT of the sizes below, or
    a pretrained Hugging Face model."""

    kind: Literal["megatron", "huggingface"] = "megatron"
    """`huggingface` needs the extra of that name, and takes its sizes from `path`."""
    path: str | None = None
    """Directory of a Hugging Face causal language model (config.json, safetensors, tokenizer), or
    its name on the hub."""
    lora_rank: int = 0
    """Rank of LoRA adapters on every linear layer of a Hugging Face model; 0 trains all of it."""
    lora_alpha: float = 16.0
    """Scale of the adapters: their product counts lora_alpha / lora_rank times."""
    checkpoint: str | None = None
    """Run folder of an earlier search; its trained Megatron proxy is the starting point."""
    num_layers: int = 4
    """Transformer layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_attention_heads: int = 4
    """Attention heads; must divide hidden_size."""
    ffn_hidden_size: int | None = None
    """Width of the SwiGLU feed-forward; default 8/3 of hidden_size, rounded up to 32."""
    make_vocab_size_divisible_by: int = 128
    """Embedding rows are padded to a multiple of this times the tensor-parallel size."""
    untie_embeddings_and_output_weights: bool = False
    """Whether the output layer has weights of its own."""
    init_method_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self) -> None:
        pretrained = self.kind == "huggingface"
        require(
            pretrained == (self.path is not None),
            "proxy.path",
            self.path,
            "proxy.kind huggingface needs the model's directory, and megatron takes none",
        )
        require(
            self.lora_rank >= 0 and (pretrained or not self.lora_rank),
            "proxy.lora_rank",
            self.lora_rank,
            "adapters are for proxy.kind huggingface; use 0 without",
        )
        require(
            not (pretrained and self.checkpoint),
            "proxy.checkpoint",
            self.checkpoint,
            "proxy.kind huggingface starts from proxy.path",
        )
        require(self.num_layers >= 1, "proxy.num_layers", self.num_layers, "use at least 1")
        require(
            self.hidden_size % self.num_attention_heads == 0
            and self.hidden_size // self.num_attention_heads % 2 == 0,
            "proxy.num_attention_heads",
            self.num_attention_heads,
            f"it must divide hidden_size {self.hidden_size} into heads of even size (rotary)",
        )

    @property
    def feed_forward_size(self) -> int:
        """`ffn_hidden_size`, or its default."""
        return self.ffn_hidden_size or -(-8 * self.hidden_size // 3 // 32) * 32

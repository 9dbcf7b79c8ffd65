"""The inner loop: how the proxy is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_fastmix.config.require import (
    require,
    require_at_least,
    require_decay,
    require_positive,
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The inner loop: how the proxy is trained."""

    train_iters: int = 400
    """Optimizer steps of the whole search."""
    micro_batch_size: int = 8
    """Samples per rank and forward pass."""
    global_batch_size: int = 32
    """Samples per optimizer step over all ranks and accumulation steps."""
    lr: float = 2e-3
    """Peak learning rate η of AdamW."""
    min_lr: float = 2e-4
    """Learning rate at the end of the decay."""
    lr_warmup_iters: int = 20
    """Steps of linear warm-up."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the decay from lr to min_lr over train_iters."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    clip_grad: float = 1.0
    """Gradient norm is clipped to this; 0 switches clipping off."""

    def __post_init__(self) -> None:
        sizes = ("train_iters", "micro_batch_size", "global_batch_size")
        require_at_least(self, "training", 1, sizes)
        require_at_least(self, "training", 0, ("weight_decay", "clip_grad"))
        require_decay(self, "training", ("adam_beta1", "adam_beta2"))
        require_positive(self, "training", ("lr", "adam_eps"))
        require(
            0 <= self.lr_warmup_iters <= self.train_iters,
            "training.lr_warmup_iters",
            self.lr_warmup_iters,
            f"choose it between 0 and train_iters {self.train_iters}",
        )
        require(
            0 <= self.min_lr <= self.lr,
            "training.min_lr",
            self.min_lr,
            f"choose it between 0 and lr {self.lr}",
        )

"""The outer loop: how the mixture logits move."""

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
class MixtureConfig:
    """The outer loop: how the mixture logits move."""

    initial_weights: tuple[float, ...] | None = None
    """Starting mixture in the order of `sources`; default uniform, with `learn: groups` over the
    groups, and inside each by size."""
    learn: Literal["sources", "groups"] = "sources"
    """What has a logit: every source, or every group (`sources[].group`; a source without one is
    its own). The shares inside a group then stay as they are at the start."""
    inner_steps: int = 20
    """n1, optimizer steps between two outer steps (the paper's best value)."""
    weighting: Literal["loss", "sampling"] = "sampling"
    """How α acts on the proxy's training: `loss` draws the sources evenly and weighs a sample's
    loss by K·α, `sampling` draws them by α. Both have the same expectation, but with few sources of
    weight `loss` lets only the samples of those count, so that the proxy learns less."""
    optimizer: Literal["adam", "mirror_adam", "sgd", "mirror_descent", "scaled_mirror_descent"] = (
        "scaled_mirror_descent"
    )
    """Outer optimizer: Adam or SGD on the logits z, or exponentiated gradient on α, of which
    `scaled_mirror_descent` is free of the hypergradient's scale, as Adam is. The default is what
    held two equals in balance and brought a fallen source back; Adam on weighted losses gave up to
    0.76 to one of two equals and left the source where it fell, and is level with it elsewhere
    (tests/distributed/test_planted_answers.py, tools/method_rows/README.md). `mirror_adam` is Adam
    without its factor α_k."""
    lr: float = 0.1
    """Outer learning rate; 0 freezes the mixture. Adam's is the change of a logit per outer step,
    `scaled_mirror_descent`'s its root mean square over the sources: with fewer than about 40 outer
    steps 0.3 to 0.5 gets further. `sgd` and `mirror_descent`
    multiply the hypergradient, about 1e-5 to 1e-3, and so need 1e2 and more."""
    min_lr: float = 0.0
    """Outer learning rate at the end of the decay."""
    lr_warmup_steps: int = 0
    """Outer steps of linear warm-up."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the decay from lr to min_lr over the outer steps of the run."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.9
    """Of Adam, for which 0.99 is usual, and of the scale in `scaled_mirror_descent`: what remembers
    large early gradients for long makes late steps small."""
    adam_eps: float = 1e-12
    """Products are about 1e-4, so Adam's usual 1e-8 would be felt."""
    averaging_fraction: float = 0.5
    """The reported mixture averages the iterates of this last part of the run."""

    def __post_init__(self) -> None:
        require_at_least(self, "mixture", 1, ("inner_steps",))
        require_at_least(self, "mixture", 0, ("lr", "lr_warmup_steps"))
        require_decay(self, "mixture", ("adam_beta1", "adam_beta2"))
        require_positive(self, "mixture", ("adam_eps",))
        require(
            0 <= self.min_lr <= self.lr,
            "mixture.min_lr",
            self.min_lr,
            f"choose it between 0 and lr {self.lr}",
        )
        require(
            0 < self.averaging_fraction <= 1,
            "mixture.averaging_fraction",
            self.averaging_fraction,
            "use a fraction in (0, 1]",
        )

"""How a blend applies the mixture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_fastmix.blend.order.spread_order import MAX_BLOCK_SIZE
from megatron_fastmix.errors import ConfigError

Weighting = Literal["loss", "sampling"]
Order = Literal["spread", "shuffled"]

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class BlendOptions:
    """Options of `install`, which says what each means."""

    weighting: Weighting = "loss"
    block_size: int = 1024
    num_samples: int | None = None
    max_epochs: float | Mapping[str, float] | None = None
    fold_loss_mask: bool = False
    splits: tuple[str, ...] = ("train",)
    order: Order = "spread"

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise ConfigError(f"weighting: found {self.weighting!r}; choose loss or sampling")
        if self.order not in get_args(Order):
            raise ConfigError(f"order: found {self.order!r}; choose spread or shuffled")
        if not 1 <= self.block_size <= MAX_BLOCK_SIZE:
            raise ConfigError(f"block_size: found {self.block_size}; use 1 to {MAX_BLOCK_SIZE}")
        if self.num_samples is not None and self.num_samples < 1:
            raise ConfigError(f"num_samples: found {self.num_samples}; use 1 or more, or leave out")
        unknown = sorted(set(self.splits) - set(SPLITS))
        if unknown or isinstance(self.splits, str):
            raise ConfigError(f"splits: found {self.splits!r}; use a tuple of {', '.join(SPLITS)}")
        if self.fold_loss_mask and self.weighting == "sampling":
            raise ConfigError(
                "fold_loss_mask with weighting sampling applies the mixture twice; leave one out"
            )
        if self.order == "shuffled" and (self.weighting == "sampling" or self.max_epochs):
            raise ConfigError(
                "order shuffled draws the sources evenly and without end; take order spread for "
                "weighting sampling and for max_epochs"
            )
        caps = self.max_epochs
        for cap in caps.values() if isinstance(caps, Mapping) else [caps]:
            if cap is not None and not 0 < cap < math.inf:
                raise ConfigError(f"max_epochs: found {cap!r}; use numbers above 0")

    def capacity(self, names: Sequence[str], sizes: Sequence[int]) -> list[int | None]:
        """The most samples (K,) that each source may give; None for no limit.

        `sizes` (K,) are samples in one epoch. Raises `ConfigError` for a cap on an unknown source.
        """
        caps = self.max_epochs
        if not isinstance(caps, Mapping):
            caps = dict.fromkeys(names, caps) if caps is not None else {}
        unknown = sorted(set(caps) - set(names))
        if unknown:
            raise ConfigError(
                f"max_epochs: {', '.join(unknown)}: no such source; sources: {', '.join(names)}"
            )
        return [
            int(caps[name] * size) if name in caps else None
            for name, size in zip(names, sizes, strict=True)
        ]

"""Puts our blend into Megatron-core's builder, and takes it out again.

`BlendedMegatronDatasetBuilder` names the class of its blends in one place, the module global
`BlendedDataset`; that name is what is replaced. Nothing else of Megatron-core changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from megatron.core import __version__ as megatron_version
from megatron.core.datasets import blended_megatron_dataset_builder as builder
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.utils import Split

from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.mixture import Mixture

KNOWN_VERSIONS = ("0.16", "0.17", "0.18", "0.19")
"""Releases of megatron-core whose builder reads the global that we replace."""


class _AnyBlend(type):
    """The builder asks `isinstance(dataset, BlendedDataset)`, which must hold for every blend."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, BlendedDataset)


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    finally:
        uninstall()


def install(
    mixture: Mixture, *, block_size: int = 1024, num_samples: int | None = None
) -> contextlib.AbstractContextManager[None]:
    """Makes every `BlendedMegatronDatasetBuilder` build `FastMixBlendedDataset` for training.

    Validation and test blends stay Megatron's. Undone by `uninstall()`, or by leaving the `with`
    block that this may head. The order of the blend's datasets is the order of `mixture.names`.

    Args:
        block_size: draws per block of `blend.draw_order`; the global batch size makes every batch
            as even over the sources as it can be.
        num_samples: length of the blend; default: what the builder asks for.

    Raises `ConfigError` for an unknown version of megatron-core, or when installed already.
    """
    release = ".".join(megatron_version.split(".")[:2])
    if release not in KNOWN_VERSIONS:
        raise ConfigError(
            f"megatron-core {megatron_version} is not known to the patch layer "
            f"(known: {', '.join(KNOWN_VERSIONS)}); install one of these"
        )
    if builder.BlendedDataset is not BlendedDataset:
        raise ConfigError("a mixture is installed already; call uninstall() first")

    class Blend(BlendedDataset, metaclass=_AnyBlend):
        def __new__(
            cls, datasets: Sequence[Any], weights: Sequence[float], size: int | None, config: Any
        ) -> BlendedDataset:
            if datasets[0].index_split is not Split.train:
                return BlendedDataset(datasets, weights, size, config)
            return FastMixBlendedDataset(
                datasets,
                weights,
                size,
                config,
                mixture=mixture,
                block_size=block_size,
                num_samples=num_samples,
            )

    builder.BlendedDataset = Blend
    return _installed()


def uninstall() -> None:
    """Gives Megatron-core its own blend back; does nothing where none of ours is installed."""
    builder.BlendedDataset = BlendedDataset

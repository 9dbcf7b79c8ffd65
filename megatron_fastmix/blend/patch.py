"""Puts our blend into Megatron-core's builder, and takes it out again.

Two names of `blended_megatron_dataset_builder` are replaced: the module global `BlendedDataset`,
which names the class of every blend, and the builder's `_build_megatron_datasets_parallel`, which
is asked for one epoch of each source: Megatron would index as many epochs as its static weights
need, in arrays as long as the run. Nothing else of Megatron-core changes. A blend without weights
stays Megatron's, which reads each sample once.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from megatron.core import __version__ as megatron_version
from megatron.core.datasets import blended_megatron_dataset_builder as builder
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.masked_dataset import MaskedWordPieceDataset
from megatron.core.datasets.utils import Split

from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset
from megatron_fastmix.blend.followed_mixture import FollowedMixture
from megatron_fastmix.blend.live_mixture import LiveMixture
from megatron_fastmix.blend.offered_share import OfferedShare
from megatron_fastmix.blend.options import BlendOptions, Order, Weighting
from megatron_fastmix.blend.shards import one_each
from megatron_fastmix.blend.source_paths import match_sources
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.mixture.mixture import Mixture

logger = logging.getLogger(__name__)

KNOWN_VERSIONS = ("0.16", "0.17", "0.18", "0.19", "0.20")
"""Releases of megatron-core whose builder has the two names that we replace."""

_DEFAULT_BLOCK_SIZE = 1024
_BUILD = builder.BlendedMegatronDatasetBuilder._build_megatron_datasets_parallel


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
    mixture: Mixture | LiveMixture,
    *,
    weighting: Weighting = "loss",
    block_size: int | None = None,
    num_samples: int | None = None,
    max_epochs: float | Mapping[str, float] | None = None,
    fold_loss_mask: bool = False,
    samples_per_update: int | None = None,
    splits: Sequence[str] = ("train",),
    order: Order = "spread",
    sources: Mapping[str, Sequence[str]] | None = None,
    left_out: Mapping[str, Sequence[str]] | None = None,
    shares: Mapping[str, float] | None = None,
    on_build: Callable[[FastMixBlendedDataset], None] | None = None,
) -> contextlib.AbstractContextManager[None]:
    """Makes every `BlendedMegatronDatasetBuilder` build `FastMixBlendedDataset` for training.

    Validation and test blends stay Megatron's. Undone by `uninstall()`, or by leaving the `with`
    block that this may head. The order of the blend's datasets is the order of `mixture.names`,
    unless `sources` tells them by their paths; the weights in `--data-path` no longer matter for
    training (Megatron's validation blend keeps them, and still wants them above 0). A blend
    without weights stays Megatron's, "each sample once", unless `num_samples` gives it another
    length; a log line says so. A run with a single dataset and no weight has no blend, nor has a
    split that `blend_per_split` gives a single dataset.

    Args:
        mixture: a `LiveMixture`, or the `Mixture` of a search.
        weighting: `sampling` draws the sources by their weights, as these move. `loss` draws them
            evenly and leaves the weights to the loss: a sample counts K·α times, with α_k by
            `sample["dataset_id"]` and K·α from `mixture.loss_weights`.
        block_size: draws per block; in every block a source has its share of draws, rounded up or
            down, and weights change at its multiples. Default: the mixture's, or 1024. The global
            batch size makes every batch as even as it can be.
        num_samples: length of the blend; default: what the builder asks for.
        max_epochs: how often a source may be read, for all or by name. The rest of its weight goes
            to the others in proportion; a log line and the blend's `usage` and `exhausted` say how
            much. Under `loss` the factors K·α stay as they are. An epoch is the dataset that the
            builder makes for no given number of samples; masked (BERT) datasets, which Megatron
            cannot build so, keep Megatron's size, and an epoch is that.
        fold_loss_mask: with `loss`, multiplies `loss_mask` by K·α, for training loops that do not
            see `dataset_id`, such as Megatron's own, whose batches drop it. That loop must run
            with `--calculate-per-token-loss`: without it Megatron divides the loss of every
            micro-batch by int(Σ loss_mask) of that micro-batch, which cancels the weight, wholly
            at `--micro-batch-size 1`. With it the gradient is Σ K·α·∇loss / Σ int(Σ loss_mask)
            over the whole global batch (the inner sum is over a micro-batch), as it should be
            where the batch holds the sources evenly: make `block_size` the global batch size, a
            multiple of K. Elsewhere the divisor varies a little with the batch. The loss that
            Megatron logs is then the weighted one. Where Megatron's arguments are there, a wrong
            one is refused.
        samples_per_update: for the `Mixture` of a search with `sampling`, training samples
            between its outer steps. Without it a folded weight is the one of the moment.
        splits: splits that get our blend.
        order: `shuffled` is the search's: a random order in each block, for even draws alone.
        sources: the paths of each source, of which it may have several (shards): prefixes, folders
            or patterns. One epoch of a source is one epoch of all its datasets, and `dataset_id`
            is the source's. `match_sources` says how paths are told. Default: the mixture's,
            which one from a mixture file has.
        left_out: with `sources`, the paths of sources that the mixture does not have: their
            datasets may be in the blend, and are not drawn. Default: the mixture's.
        shares: by source the part of its samples that the blend offers, with repetition beyond it;
            see `OfferedShare`. Default: all.
        on_build: called with every blend of ours when it is built, on the ranks that build it.

    Raises `ConfigError` for an unknown version of megatron-core, for options that do not go
    together, or when installed already.
    """
    release = ".".join(megatron_version.split(".")[:2])
    if release not in KNOWN_VERSIONS:
        raise ConfigError(
            f"megatron-core {megatron_version} is not known to the patch layer "
            f"(known: {', '.join(KNOWN_VERSIONS)}); install one of these"
        )
    if builder.BlendedDataset is not BlendedDataset:
        raise ConfigError("a mixture is installed already; call uninstall() first")
    own = mixture.block_size if isinstance(mixture, LiveMixture) else None
    if own and block_size not in (None, own):
        raise ConfigError(f"block_size: found {block_size}; the mixture was made with {own}")
    options = BlendOptions(
        weighting=weighting,
        block_size=block_size or own or _DEFAULT_BLOCK_SIZE,
        num_samples=num_samples,
        max_epochs=max_epochs,
        fold_loss_mask=fold_loss_mask,
        splits=tuple(splits),
        order=order,
    )
    history: Any = mixture
    if isinstance(mixture, Mixture):
        if weighting == "loss" and mixture.config.weighting == "sampling":
            raise ConfigError(
                "weighting: found loss, but the mixture is configured for sampling and gives every "
                "sample the factor 1; use weighting sampling"
            )
        if weighting == "sampling" and samples_per_update is None:
            raise ConfigError(
                "samples_per_update: missing; draws by a search's mixture need the training "
                "samples between its outer steps"
            )
        history = FollowedMixture(mixture, samples_per_update, options.block_size)
    elif samples_per_update is not None:
        raise ConfigError("samples_per_update: a live mixture says itself when it changes")
    if fold_loss_mask:
        _check_loss_normalisation()
    patched = {Split[name] for name in options.splits}
    if isinstance(mixture, LiveMixture):
        places = {**mixture.left_out, **(sources or {})}
        left_out = left_out or {name: places[name] for name in mixture.left_out}
        sources = mixture.sources if sources is None else sources
    if sources is not None:
        sources = {name: sources.get(name, ()) for name in mixture.names}
    unused = dict(left_out or {})

    class Blend(BlendedDataset, metaclass=_AnyBlend):
        def __new__(
            cls, datasets: Sequence[Any], weights: Sequence[float], size: int | None, config: Any
        ) -> BlendedDataset:
            split = datasets[0].index_split
            if split not in patched:
                return BlendedDataset(datasets, weights, size, config)
            if num_samples is None and _is_unweighted(config, split):
                logger.warning(
                    "the %s blend has no weights: Megatron reads each sample once, and the mixture "
                    "does not apply; write a weight (any above 0) before each path to apply it",
                    split.name,
                )
                return BlendedDataset(datasets, weights, size, config)
            if fold_loss_mask:
                # Arguments that were parsed after the mixture was installed.
                _check_loss_normalisation()
            if sources is not None:
                paths = [str(dataset.dataset_path) for dataset in datasets]
                numbers = match_sources({**sources, **unused}, paths, optional=unused)
                numbers = {name: numbers[name] for name in sources}
                datasets = one_each({s: [datasets[n] for n in ns] for s, ns in numbers.items()})
                weights = [1.0] * len(datasets)
            if shares is not None:
                datasets = [
                    OfferedShare(dataset, shares[name], config.random_seed, name)
                    for dataset, name in zip(datasets, mixture.names, strict=True)
                ]
            blend = FastMixBlendedDataset(
                datasets, weights, size, config, mixture=mixture, history=history, options=options
            )
            if (
                isinstance(mixture, LiveMixture)
                and (weighting == "sampling" or fold_loss_mask)
                and split is Split.train
            ):
                mixture.note_blend(len(blend))
            if on_build is not None:
                on_build(blend)
            return blend

    def build(
        self: Any, prefixes: list[str], split: list[Any], sizes_per_dataset: list[list[Any]]
    ) -> list[list[Any]]:
        if not issubclass(self.cls, MaskedWordPieceDataset):
            sizes_per_dataset = [
                [None if Split(i) in patched else size for i, size in enumerate(sizes)]
                for sizes in sizes_per_dataset
            ]
        built = _BUILD(self, prefixes, split, sizes_per_dataset)
        if _has_asked_length(self.cls):
            for split_datasets in built:
                for dataset in split_datasets:
                    if dataset is not None and dataset.num_samples is None:
                        dataset.num_samples = len(dataset.indices)
        return built

    builder.BlendedDataset = Blend
    builder.BlendedMegatronDatasetBuilder._build_megatron_datasets_parallel = build
    return _installed()


def uninstall() -> None:
    """Gives Megatron-core its own blend back; does nothing where none of ours is installed."""
    builder.BlendedDataset = BlendedDataset
    builder.BlendedMegatronDatasetBuilder._build_megatron_datasets_parallel = _BUILD


def _is_unweighted(config: Any, split: Split) -> bool:
    per_split = getattr(config, "blend_per_split", None)
    blend = per_split[split.value] if per_split else getattr(config, "blend", None)
    return blend is not None and blend[1] is None


def _has_asked_length(cls: type) -> bool:
    """Whether the length of a dataset is what was asked for, as with Megatron's `SFTDataset`.

    Such a class reads row i modulo the rows that it has, so one epoch of it is these rows.
    """
    code = getattr(getattr(cls, "__len__", None), "__code__", None)
    return code is not None and set(code.co_names) == {"num_samples"}


def _check_loss_normalisation() -> None:
    # Only a training script that has imported megatron.training has these arguments.
    arguments = getattr(sys.modules.get("megatron.training.global_vars"), "_GLOBAL_ARGS", None)
    if arguments is not None and not getattr(arguments, "calculate_per_token_loss", False):
        raise ConfigError(
            "fold_loss_mask: Megatron divides the loss of each micro-batch by its loss_mask, which "
            "cancels the weights; add --calculate-per-token-loss"
        )

"""What a run has of ours, from its parsed arguments to its log lines."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.datasets.utils import Split

from megatron_fastmix import blend
from megatron_fastmix.blend.blended_dataset import FastMixBlendedDataset
from megatron_fastmix.blend.live_mixture import LiveMixture
from megatron_fastmix.megatron.argument_checks import (
    Blend,
    cache_note,
    check_arguments,
    check_blend,
    check_loader_follows,
    hides_sources,
    name_validation_sets,
)
from megatron_fastmix.megatron.options import RunOptions
from megatron_fastmix.megatron.resume import (
    ATTRIBUTE,
    check_sizes,
    checksum,
    resumed,
    run_state,
)
from megatron_fastmix.megatron.run_mixture import RunMixture, other_weights, read_run_mixture
from megatron_fastmix.megatron.source_log import SourceRow, local_values, rows_of
from megatron_fastmix.megatron.source_losses import Layout, SourceLosses
from megatron_fastmix.parallel.device import collective_device
from megatron_fastmix.parallel.groups import DataParallelGroup

logger = logging.getLogger(__name__)

_DEFAULT_BLOCK_SIZE = 1024


class Session:
    """One run on a mixture. Its methods are called in the order of a Megatron run."""

    mixture: LiveMixture | None = None
    """The weights that the blend follows; scripts may `update` it."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.losses: SourceLosses | None = None
        """Of the ranks that build the blend."""
        self._asked: RunMixture | None = None
        self._args: Any = None
        self._blend: FastMixBlendedDataset | None = None
        self._left_out: dict[str, tuple[str, ...]] = {}
        self._sizes: dict[str, int] = {}
        """Samples in an epoch of each source: of the checkpoint, then of the blend."""
        self._noted: int | None = None
        self._told = self._resumed = self._agreed = False

    def begin_without_arguments(self, *, rows: bool = False) -> None:
        """Installs the mixture for a script that is not of `megatron.training`; the blend's
        datasets are matched when it is built. `rows`: the run may draw rows, as Megatron's `--sft`
        does. Raises `ConfigError` and `DataError`."""
        self._asked, self._left_out = read_run_mixture(self.options, rows=rows).drawn()
        block_size = self.options.block_size or _DEFAULT_BLOCK_SIZE
        self._install(LiveMixture.from_schedule(self._asked.schedule, block_size=block_size))

    def arguments_known(self, args: Any, blends: Sequence[Blend | None]) -> None:
        """Checks Megatron's parsed `args` and installs the mixture of their training blend.

        `blends` are prefixes and weights (None without) of the training and the validation split.
        Raises `ConfigError` for arguments that would cancel the weights, and `DataError` for
        datasets and sources that do not match.
        """
        blend.uninstall()
        check_arguments(args, self.options)
        training, validation = blends
        check_blend(training)
        assert training is not None
        asked = read_run_mixture(self.options, rows=bool(getattr(args, "sft", False)))
        self._asked, self._left_out = asked.matched(training[0]), {}
        assert training[1] is not None
        corrected = other_weights(self._asked, training[0], training[1])
        if corrected:
            logger.warning("%s", corrected)
        self._args = args
        if getattr(args, "multiple_validation_sets", False) and validation is not None:
            name_validation_sets(args, validation[0])
        note = cache_note(args)
        if note:
            logger.warning("%s", note)
        hidden = hides_sources(args)
        if hidden and self.options.loss_by_source:
            logger.warning("no losses by source: %s", hidden)
        self._install(self._mixture(None, 0))

    def checkpoint_known(self, state: Any, consumed: int) -> None:
        """Goes on from a checkpoint: `state` is what `args.fastmix_state` was (None without),
        `consumed` its training samples. Raises `CheckpointError` where it does not fit, and
        `ConfigError` where another mixture than the checkpoint's could not hold from there on."""
        if state is None and self._resumed:
            return  # another model's checkpoint, such as a teacher's, after the run's own
        self._resumed = state is not None
        self._sizes = dict((state or {}).get("epoch_sizes", {}))
        blend.uninstall()
        mixture = self._mixture(state, consumed)
        if any(at >= max(consumed, 1) for at, _ in mixture.history):
            check_loader_follows(self._args)
        self._install(mixture)

    @property
    def has_built(self) -> bool:
        """Whether this rank built a training dataset, which the mixture then blends."""
        return self._blend is not None

    def step_begins(self) -> None:
        """Before every training step. Every rank must call. Raises `RankDivergenceError` at the
        first where ranks have read different mixtures, as from a file that a search wrote anew
        meanwhile, or of which each host has its own."""
        if not self._agreed:
            read = np.array([checksum(getattr(self._args, ATTRIBUTE))])
            group = DataParallelGroup(device=collective_device())
            group.check_equal(read, ["the mixture"], "checksums")
            self._agreed = True

    def pass_begins(self, first: int) -> None:
        """Before every forward pass of a training step whose global batch begins at `first`."""
        if self.losses is not None:
            self.losses.begin(first)

    def step_ends(self) -> None:
        """After every training step: keeps what the next checkpoint saves up to date, too."""
        if self.losses is not None:
            self.losses.end()
        assert self.mixture is not None
        if self.mixture.counter[0] != self._noted:
            self._note_state()

    def rows(self, consumed: int) -> list[SourceRow] | None:
        """The sources after `consumed` samples, on the ranks of the last pipeline stage; None
        elsewhere, and where losses by source are not logged. Every rank must call."""
        if not self._watches() or not mpu.is_pipeline_last_stage(ignore_virtual=True):
            return None
        assert self.mixture is not None
        draws = sizes = sums = None
        if self.losses is not None:
            sums = self.losses.take()
            if self.losses.problem and not self._told:
                logger.warning("no losses by source: %s", self.losses.problem)
                self._told = True
        if self._blend is not None and _is_first_of_stage():
            draws = list(self._blend.draws_before(consumed).values())
            sizes = self._blend.epoch_sizes
        device = sums.device if sums is not None else collective_device()
        values = local_values(sums, draws, sizes, len(self.mixture.names), device)
        # Ranks that have built no blend (tensor-parallel ranks but the first) add zeros; the one
        # that logs is among them.
        dist.all_reduce(values, group=mpu.get_data_parallel_group(with_context_parallel=True))
        if mpu.get_tensor_model_parallel_world_size() > 1:
            dist.all_reduce(values, group=mpu.get_tensor_model_parallel_group())
        weights = self.mixture.weights_at(consumed).tolist()
        return rows_of(self.mixture.names, values, weights, self._args.seq_length)

    def _watches(self) -> bool:
        return (
            self.options.loss_by_source
            and self._args is not None
            and hides_sources(self._args) is None
        )

    def _mixture(self, state: Any, consumed: int) -> LiveMixture:
        assert self._asked is not None
        return resumed(
            state,
            self._asked,
            self.options,
            seed=self._args.seed,
            consumed=consumed,
            block_size=self._block_size(),
        )

    def _block_size(self) -> int:
        """Samples per block: the global batch's, so that each is as even as can be. A batch size
        that steps up has no one size, and Megatron's is then the smallest that ranks can share."""
        steps = getattr(self._args, "step_batch_size_schedule", None)
        natural = _DEFAULT_BLOCK_SIZE if steps else self._args.global_batch_size
        return self.options.block_size or int(natural)

    def _install(self, mixture: LiveMixture) -> None:
        assert self._asked is not None
        self.mixture = mixture
        self._agreed = False
        caps = self.options.max_epochs
        if isinstance(caps, Mapping):  # what is left out is never read
            caps = {name: cap for name, cap in caps.items() if name in mixture.names}
        blend.install(
            mixture,
            weighting=self.options.weighting,
            fold_loss_mask=self.options.weighting == "loss",
            max_epochs=caps,
            sources=self._asked.paths,
            left_out=self._left_out,
            on_build=self._built,
        )
        self._note_state()

    def _built(self, built: FastMixBlendedDataset) -> None:
        if built.split is not Split.train:
            return
        built.usage()  # raises now where caps end the run before its last sample
        self._blend = built
        assert self.mixture is not None
        sizes = dict(zip(self.mixture.names, built.epoch_sizes, strict=True))
        check_sizes(self._sizes, sizes, self.options)
        self._sizes = sizes
        self._note_state()
        if (
            not self._watches()
            or not dist.is_initialized()
            or not mpu.is_pipeline_last_stage(ignore_virtual=True)
        ):
            return
        layout = Layout(
            micro_batch_size=self._args.micro_batch_size,
            rank=mpu.get_data_parallel_rank(),
            size=mpu.get_data_parallel_world_size(),
        )
        self.losses = SourceLosses(built, layout)

    def _note_state(self) -> None:
        assert self.mixture is not None
        assert self._asked is not None
        self._noted = self.mixture.counter[0]
        if self._args is not None:
            seed, sizes = self._args.seed, self._sizes
            state = run_state(self.mixture, self._asked, self.options, seed, sizes)
            setattr(self._args, ATTRIBUTE, state)


def _is_first_of_stage() -> bool:
    return (
        mpu.get_data_parallel_rank() == 0
        and mpu.get_context_parallel_rank() == 0
        and mpu.get_tensor_model_parallel_rank() == 0
    )

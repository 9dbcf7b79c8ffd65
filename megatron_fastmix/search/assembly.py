"""The parts of a search on one rank, put together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.batch.sources import build_source_blend, build_targets
from megatron_fastmix.checkpoint.identity import Identity, check_same_on_all_ranks, identity_of
from megatron_fastmix.checkpoint.store import CheckpointWriter
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.deepspeed_engine.engine import (
    build_engine,
    engine_parameters,
    engine_preconditioner,
)
from megatron_fastmix.errors import ConfigError, DataError, FastMixError
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.mixture.objective import AGGREGATIONS, TargetAggregation
from megatron_fastmix.parallel.environment import local_rank
from megatron_fastmix.parallel.groups import DataParallelGroup, limit_waiting
from megatron_fastmix.proxy.megatron_gpt import initialize_parallel_state
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.search.budget import offered_shares
from megatron_fastmix.search.inputs import Inputs, check_inputs
from megatron_fastmix.search.known_inputs import cache_folder, hand_on, take_over
from megatron_fastmix.search.outer_step import OuterLoop
from megatron_fastmix.search.start_mixture import start_mixture

INDEXING_LIMIT = timedelta(days=2)
"""How long the ranks wait for the indices of all datasets."""


@dataclass(frozen=True, kw_only=True)
class SearchParts:
    """Everything that a search works with."""

    folder: RunFolder
    world: DataParallelGroup
    """All ranks."""
    group: DataParallelGroup
    """The data-parallel ranks of this one."""
    tensor: DataParallelGroup
    """The tensor-parallel ranks of this one."""
    inputs: Inputs
    identity: Identity
    mixture: Mixture
    targets: TargetAggregation
    batches: Batches
    engine: Any
    """DeepSpeed's, around the proxy."""
    outer_loop: OuterLoop
    checkpoints: CheckpointWriter


def assemble(config: SearchConfig, device: torch.device) -> SearchParts:
    """Checks the inputs and builds everything at its start. Every rank must call.

    Raises what `check_inputs` raises, and `RankDivergenceError` where ranks read different data.
    """
    initialize_parallel_state(config.engine.tensor_model_parallel_size)
    folder = RunFolder(Path(config.run_dir))
    world = DataParallelGroup(device=device)
    group = DataParallelGroup(parallel_state.get_data_parallel_group(), device)
    tensor = DataParallelGroup(parallel_state.get_tensor_model_parallel_group(), device)
    # One rank of each host may read, and rank 0 index, for longer than a collective of the search
    # may take.
    limit_waiting(INDEXING_LIMIT)
    inputs = _check_inputs(config, world)
    tokenizer = inputs.tokenizer
    shares = offered_shares(config, inputs)
    identity = identity_of(config, tokenizer.sha256)
    check_same_on_all_ranks(identity, world)

    mixture = start_mixture(config, [source.size.loss_tokens for source in inputs.sources])
    targets = AGGREGATIONS[config.objective.target_aggregation](
        config.target_weights, [t.reference_loss for t in config.targets], config.objective
    )
    cache = str(cache_folder(config))
    batches = Batches(
        config,
        build_source_blend(config, mixture, tokenizer, cache, shares),
        build_targets(config, tokenizer, cache),
        group,
        grouping=mixture.grouping,
        read_ahead=True,
    )
    world.barrier()
    limit_waiting(timedelta(minutes=config.engine.distributed_timeout_minutes))
    engine = build_engine(config, tokenizer.vocab_size, group.size)
    if config.data.reset_attention_mask and getattr(engine.module, "samples_run_alone", False):
        raise ConfigError(
            "data.reset_attention_mask: this model carries what it read from one document of a row "
            "to the next, whatever it is told; set it and data.reset_position_ids to false"
        )
    return SearchParts(
        folder=folder,
        world=world,
        group=group,
        tensor=tensor,
        inputs=inputs,
        identity=identity,
        mixture=mixture,
        targets=targets,
        batches=batches,
        engine=engine,
        outer_loop=OuterLoop(
            config,
            engine.module,
            engine_parameters(engine, group, tensor),
            batches,
            mixture,
            targets,
            world,
            tensor,
            engine_preconditioner(engine, config, group, tensor),
        ),
        checkpoints=CheckpointWriter(folder, world, group, tensor, config.output.keep_checkpoints),
    )


def _check_inputs(config: SearchConfig, world: DataParallelGroup) -> Inputs:
    """What every rank finds. One rank of each host reads what nobody has handed on, and hands it to
    the others. Every rank must call.

    Raises on all ranks what one of them finds wrong.
    """
    first_of_host = local_rank() == 0
    inputs: Inputs | None = None
    for reads in (True, False):
        refused: FastMixError | OSError | None = None
        try:
            if reads == first_of_host:
                take_over(config)
                inputs = check_inputs(config, world.size, vocabulary=first_of_host)
            if reads and inputs is not None:
                identity_of(config, inputs.tokenizer.sha256)
                hand_on(config, inputs)
        except (FastMixError, OSError) as error:
            refused = error
        if world.any(refused is not None):
            raise refused or DataError(
                "the inputs: another rank was refused them, as it says", is_echo=True
            )
    assert inputs is not None
    return inputs

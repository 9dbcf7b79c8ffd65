"""What a checkpoint keeps of the DeepSpeed engine: each rank's own fragments of the fp32 parameters
and of Adam's moments, under the parameters' names.

A fragment says where in the flattened parameter it begins, so that any ZeRO stage and any
data-parallel size can read what another one wrote. Saving needs no collective, and every rank
writes its share alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron_fastmix.checkpoint.stored_parameters import MASTER, MOMENTS, StoredParameters
from megatron_fastmix.deepspeed_engine.engine import follow_schedule
from megatron_fastmix.deepspeed_engine.preconditioner import inner_optimizer
from megatron_fastmix.parallel.groups import DataParallelGroup


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A run of elements of one flattened parameter, as this rank's optimizer holds it."""

    name: str
    start: int
    """First element, counted in the flattened parameter."""
    numel: int
    owner: torch.Tensor
    """What the optimizer steps: the parameter, its fp32 copy, or a flat partition of many."""
    offset: int
    """First element, counted in the flattened owner."""

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fragment's part of `tensor`, which has the owner's shape."""
        return tensor.view(-1)[self.offset : self.offset + self.numel]


def snapshot(engine: Any, group: DataParallelGroup) -> dict[str, np.ndarray]:
    """Copies of this rank's share of the parameters and moments, fp32, on the host.

    Keys are `kind:start:numel:name`. Together the ranks of `group` hold every element once. No
    collective.
    """
    state = inner_optimizer(engine).state
    arrays: dict[str, np.ndarray] = {}
    for fragment in _fragments(engine, group):
        fragment = _share(fragment, group) if _replicated(engine) else fragment
        if not fragment.numel:
            continue
        moments = state.get(fragment.owner, {})  # nothing before the first step that is not skipped
        for kind in (MASTER, *MOMENTS):
            copy = torch.zeros(fragment.numel)
            if moments or kind == MASTER:
                tensor = fragment.owner.data if kind == MASTER else moments[kind]
                copy.copy_(fragment.view(tensor).detach())
            key = f"{kind}:{fragment.start}:{fragment.numel}:{fragment.name}"
            arrays[key] = copy.numpy()
        arrays["adam_steps"] = np.array([float(moments.get("step", 0))])
    return arrays


def restore(engine: Any, group: DataParallelGroup, stored: StoredParameters, step: int) -> None:
    """Sets the engine to what `snapshot` saw after `step` steps. No collective.

    Raises `CheckpointError` where the parameters' names or sizes differ.
    """
    trained = dict(_trained(engine))
    stored.check_names({name: _numel(parameter) for name, parameter in trained.items()})
    inner = inner_optimizer(engine)
    for owner in _owners(engine):
        inner.state[owner] = {
            "step": torch.tensor(stored.adam_steps, dtype=torch.float32),
            **{kind: torch.zeros_like(owner.data) for kind in MOMENTS},
        }
    for fragment in _fragments(engine, group):
        for kind in (MASTER, *MOMENTS):
            tensor = fragment.owner.data if kind == MASTER else inner.state[fragment.owner][kind]
            values = stored.read(kind, fragment.name, fragment.start, fragment.numel)
            fragment.view(tensor).copy_(torch.from_numpy(values))
        if engine.zero_optimization_stage() == 3:
            shard = trained[fragment.name].ds_tensor.data.view(-1)[: fragment.numel]
            shard.copy_(fragment.view(fragment.owner.data))
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.empty_partition_cache()  # small parameters stay gathered otherwise
    else:
        for name, parameter in trained.items():
            values = stored.read(MASTER, name, 0, parameter.numel())
            parameter.data.copy_(torch.from_numpy(values).view_as(parameter))
    _restore_counters(engine, step)


def _fragments(engine: Any, group: DataParallelGroup) -> Iterator[Fragment]:
    """What this rank's optimizer steps; without ZeRO, all of it."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    masters = dict(_masters(engine)) if stage == 0 else {}
    for name, parameter in _trained(engine):
        if stage == 3:
            index, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = group.rank * length
            yield Fragment(
                name=name,
                start=start,
                numel=max(0, min(length, parameter.ds_numel - start)),  # the rest is padding
                owner=optimizer.fp32_partitioned_groups_flat[index],
                offset=offset,
            )
        elif stage == 0:
            owner = masters.get(parameter, parameter)
            yield Fragment(name=name, start=0, numel=owner.numel(), owner=owner, offset=0)
        elif parameter._hp_mapping is not None:
            mapping = parameter._hp_mapping
            yield Fragment(
                name=name,
                start=mapping.lp_fragment_address.start,
                numel=mapping.lp_fragment_address.numel,
                owner=_owners(engine)[mapping.param_group_index],
                offset=mapping.hp_fragment_address.start,
            )


def _share(fragment: Fragment, group: DataParallelGroup) -> Fragment:
    """The part of a fragment that all ranks hold which this one writes."""
    low = fragment.numel * group.rank // group.size
    high = fragment.numel * (group.rank + 1) // group.size
    return Fragment(
        name=fragment.name,
        start=fragment.start + low,
        numel=high - low,
        owner=fragment.owner,
        offset=fragment.offset + low,
    )


def _replicated(engine: Any) -> bool:
    return engine.zero_optimization_stage() == 0


def _owners(engine: Any) -> list[torch.Tensor]:
    """Every tensor that the optimizer steps."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 3:
        return optimizer.fp32_partitioned_groups_flat
    if stage > 0:
        return optimizer.single_partition_of_fp32_groups
    masters = dict(_masters(engine))
    return [masters.get(parameter, parameter) for _, parameter in _trained(engine)]


def _masters(engine: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each bf16 parameter with its fp32 copy, without ZeRO; nothing in fp32."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_groups"):
        for group, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            yield from zip(group, masters, strict=True)


def _trained(engine: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]


def _numel(parameter: Any) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())


def _restore_counters(engine: Any, step: int) -> None:
    engine.global_steps = step
    engine.global_samples = step * engine.train_batch_size()
    engine.micro_steps = step * engine.gradient_accumulation_steps()
    follow_schedule(engine, step)

"""Checkpoints of a search: DeepSpeed's files, and ours, written last.

    RUN/checkpoints/step-00000100/             DeepSpeed: model, optimizer, schedule
    RUN/checkpoints/step-00000100/search.json  ours: step, mixture, batch layout

A folder without `search.json` is an interrupted write: it is ignored and then removed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.errors import CheckpointError
from megatron_fastmix.parallel.groups import DataParallelGroup

STATE_FILE = "search.json"


@dataclass(frozen=True, kw_only=True)
class SearchState:
    """The part of a search's state that DeepSpeed does not keep."""

    step: int
    """Optimizer steps done; the draws of the next one follow from it."""
    tokens: int
    """Tokens trained on."""
    seconds: float
    """Wall time of the search so far, over all its parts."""
    mixture: dict[str, Any]
    """`Mixture.state()`."""
    target_weights: list[float]
    """ω of the outer step to come, (V,)."""
    initial_target_losses: list[float] | None
    """Loss of each target at the first outer step, (V,)."""
    final_target_losses: list[float] | None
    """Loss of each target at the last outer step, (V,)."""
    data_parallel_size: int
    """Ranks that wrote the checkpoint: ZeRO's shards need as many."""


def save(
    run_dir: Path, engine: Any, state: SearchState, world: DataParallelGroup, keep: int
) -> Path:
    """Writes a checkpoint, and removes the oldest beyond `keep`. Every rank must call: `world`."""
    folder = _folder(run_dir, state.step)
    if world.rank == 0:
        (folder / STATE_FILE).unlink(missing_ok=True)
    world.barrier()
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    world.barrier()
    if world.rank == 0:
        write_atomically(folder / STATE_FILE, json.dumps(asdict(state)))
        complete = [path.parent for path in _states(run_dir)]
        for old in folder.parent.glob("step-*"):
            if old not in complete[-keep:]:
                # The mark of completeness goes first, lest a half-removed folder pass for whole.
                (old / STATE_FILE).unlink(missing_ok=True)
                shutil.rmtree(old, ignore_errors=True)
    world.barrier()
    return folder


def latest(run_dir: Path) -> SearchState | None:
    """The state of the newest complete checkpoint; None where there is none."""
    states = _states(run_dir)
    if not states:
        return None
    try:
        return SearchState(**json.loads(states[-1].read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{states[-1]}: not the state of a search: {error}; remove its folder to go on from "
            "the checkpoint before"
        ) from None


def load(run_dir: Path, engine: Any, state: SearchState, group: DataParallelGroup) -> None:
    """Restores the engine from the checkpoint of `state`. Every rank must call."""
    if state.data_parallel_size != group.size:
        raise CheckpointError(
            f"{_folder(run_dir, state.step)}: written by {state.data_parallel_size} data-parallel "
            f"ranks, this run has {group.size}; start as many, or use another run_dir"
        )
    folder = _folder(run_dir, state.step)
    loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    if loaded is None:
        raise CheckpointError(f"{folder}: DeepSpeed cannot load it; remove the folder")


def _folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def _states(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "checkpoints").glob(f"step-*/{STATE_FILE}"))

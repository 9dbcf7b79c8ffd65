"""What rides in Megatron's own checkpoints, and what a resumed run makes of it.

It is an attribute of the arguments, which Megatron saves in every checkpoint of every format, on
the way of the model's own weights: whatever iteration is loaded, its mixture comes with it.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_fastmix.blend.live_mixture import LiveMixture
from megatron_fastmix.blend.order.spread_order import DRAW_ORDER
from megatron_fastmix.errors import CheckpointError
from megatron_fastmix.megatron.options import RunOptions
from megatron_fastmix.megatron.run_mixture import RunMixture

logger = logging.getLogger(__name__)

ATTRIBUTE = "fastmix_state"
"""Name of the attribute of Megatron's arguments."""
VERSION = 1
_TOLERANCE = 1e-9

History = list[tuple[int, dict[str, float]]]
"""(first sample, shares by name) of every change."""


def run_state(
    mixture: LiveMixture,
    asked: RunMixture,
    options: RunOptions,
    seed: int,
    epoch_sizes: Mapping[str, int],
) -> dict[str, Any]:
    """Plain values from which a resumed run draws on as this one would. `epoch_sizes` are what
    `check_sizes` compares, empty before a blend is built."""
    return {
        "version": VERSION,
        **mixture.state_dict(),
        "asked": [[c.at_sample, dict(c.weights)] for c in asked.schedule.changes],
        "datasets": {name: _below(paths) for name, paths in asked.paths.items()},
        "weighting": options.weighting,
        "max_epochs": _plain(options.max_epochs),
        "seed": seed,
        "epoch_sizes": dict(epoch_sizes),
    }


def checksum(state: Mapping[str, Any]) -> int:
    """One number for what of `run_state` every rank must have read alike. Weights of the history,
    which are computed, may differ in the last bits from one kind of processor to another."""
    read = {key: state[key] for key in state if key not in ("history", "epoch_sizes")}
    read["changes"] = [at for at, _ in state["history"]]
    return zlib.crc32(json.dumps(read, sort_keys=True).encode())


def resumed(
    state: Mapping[str, Any] | None,
    asked: RunMixture,
    options: RunOptions,
    *,
    seed: int,
    consumed: int,
    block_size: int,
) -> LiveMixture:
    """The mixture of a run that goes on at sample `consumed`.

    The checkpoint's history holds up to there, and its block size throughout, whatever the global
    batch size is now: draws are numbered by sample. From there on what the flags ask for holds. A
    mixture that differs is taken where only changes to come are others, or with
    `--fastmix-accept-changes`; else `CheckpointError` names the difference.

    Args:
        state: `run_state` of the checkpoint; None for one that was written without fastmix.
        asked: what the flags of this start ask for.
        block_size: samples per block of a run that begins.
    """
    schedule = asked.schedule
    fresh = LiveMixture.from_schedule(schedule, block_size=block_size)
    if state is None:
        if consumed:
            logger.warning(
                "the checkpoint was written without a mixture: its %d samples were not drawn by "
                "this blend, whose first draws it skips",
                consumed,
            )
        return fresh
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"the checkpoint's mixture has version {state.get('version')}, this program reads "
            f"{VERSION}; use the release that wrote it"
        )
    if options.block_size not in (None, state["block_size"]):
        logger.warning(
            "--fastmix-block-size %d does not count: the checkpoint's run has blocks of %d samples",
            options.block_size,
            state["block_size"],
        )
    differences = _differences(state, asked, options, seed)
    changed = any(0 < at < consumed for at, _ in state["history"])
    moved = changed and state["weighting"] == "sampling"
    may_differ = consumed and (moved or state["max_epochs"])  # a cap may have ended a source
    if may_differ and state.get("draw_order") != DRAW_ORDER:
        differences.append(
            "order of draws after a change of weights or the end of a capped source (that of an "
            "earlier release)"
        )
    if differences:
        what = "; ".join(differences)
        if not options.accept_changes:
            raise CheckpointError(
                f"the checkpoint's run had another {what}. Its samples would be drawn in another "
                "order: start as it was started, or add --fastmix-accept-changes"
            )
        logger.warning("another %s: earlier samples may be read again", what)
    if set(state["names"]) != set(schedule.names):
        return fresh
    before = _history(state["asked"])
    now = _history([[c.at_sample, dict(c.weights)] for c in schedule.changes])
    past = _kept(state)
    if _same(before, now):
        history = past
    else:
        size = state["block_size"]
        at = -(-consumed // size) * size
        if not _same(_up_to(before, consumed), _up_to(now, consumed)) and not (
            options.accept_changes
        ):
            raise CheckpointError(
                f"the mixture differs from the checkpoint's before its sample {consumed}: "
                f"{_first_difference(before, now)}. Start with the checkpoint's, or add "
                f"--fastmix-accept-changes to use this one from sample {at} on"
            )
        history = [entry for entry in past if entry[0] < at]
        if not _same([(at, history[-1][1])] if history else [], [(at, _in_force(now, at))]):
            history.append((at, _in_force(now, at)))
        history += [(-(-start // size) * size, shares) for start, shares in now if start > at]
        logger.warning("another mixture than the checkpoint's holds from sample %d on", at)
    names = state["names"]
    mixture = LiveMixture(
        {name: history[0][1][name] for name in names},
        block_size=state["block_size"],
        max_updates=max(1024, len(history)),
    )
    mixture.load_state_dict(
        {
            "names": names,
            "block_size": state["block_size"],
            "history": [[at, [shares[name] for name in names]] for at, shares in history],
            "draw_order": DRAW_ORDER,
        },
        consumed,
    )
    return mixture


def check_sizes(before: Mapping[str, int], now: Mapping[str, int], options: RunOptions) -> None:
    """Compares samples per epoch by source, on which the order of a source's samples rests, with
    the checkpoint's; empty where it does not say them. Raises `CheckpointError`."""
    for name, size in now.items():
        if before.get(name, size) == size:
            continue
        what = f"source {name} had {before[name]:,} samples in an epoch, now {size:,}"
        if not options.accept_changes:
            raise CheckpointError(
                f"{what}: its data, --seq-length or --split are others, and its samples would come "
                "in another order: start as it was started, or add --fastmix-accept-changes"
            )
        logger.warning("%s: earlier samples may be read again", what)


def _differences(
    state: Mapping[str, Any], asked: RunMixture, options: RunOptions, seed: int
) -> list[str]:
    pairs = {
        "list of sources": (sorted(state["names"]), sorted(asked.schedule.names)),
        "--fastmix-weighting": (state["weighting"], options.weighting),
        "--fastmix-max-epochs": (state["max_epochs"], _plain(options.max_epochs)),
        "--seed": (state["seed"], seed),
    }
    differences = [f"{name} ({old}, now {new})" for name, (old, new) in pairs.items() if old != new]
    # Checkpoints of earlier releases do not say which datasets their sources had.
    for name, before in state.get("datasets", {}).items():
        now = _below(asked.paths[name]) if name in asked.paths else before
        if now != before:
            differences.append(f"--data-path for {name} ({_first_other(before, now)})")
    return differences


def _below(paths: Sequence[str]) -> list[str]:
    """The paths below the folder that they share, which a move of the data leaves as they are.

    Samples of a source are numbered through its datasets in this order.
    """
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    return [os.path.relpath(os.path.abspath(path), folder) for path in paths]


def _first_other(before: Sequence[str], now: Sequence[str]) -> str:
    if len(before) != len(now):
        return f"{len(before)} datasets, now {len(now)}"
    number = next(i for i, (one, two) in enumerate(zip(before, now, strict=True)) if one != two)
    return f"its dataset {number + 1} was {before[number]}, now {now[number]}"


def _kept(state: Mapping[str, Any]) -> History:
    names = state["names"]
    return [(int(at), dict(zip(names, row, strict=True))) for at, row in state["history"]]


def _history(changes: list[list[Any]]) -> History:
    history = []
    for at, weights in changes:
        total = sum(weights.values())
        history.append((int(at), {name: weight / total for name, weight in weights.items()}))
    return history


def _up_to(history: History, sample: int) -> History:
    return [entry for entry in history if entry[0] < max(sample, 1)]


def _in_force(history: History, sample: int) -> dict[str, float]:
    return [shares for at, shares in history if at <= sample][-1]


def _same(one: History, two: History) -> bool:
    return len(one) == len(two) and all(
        a == b and all(abs(x[name] - y.get(name, 0.0)) < _TOLERANCE for name in x)
        for (a, x), (b, y) in zip(one, two, strict=True)
    )


def _first_difference(one: History, two: History) -> str:
    for (at, x), (other, y) in zip(one, two, strict=False):
        if at != other:
            return f"a change at sample {at}, now {other}"
        for name in x:
            if abs(x[name] - y[name]) >= _TOLERANCE:
                return f"{name} has {x[name]:.6g} from sample {at} on, now {y[name]:.6g}"
    return f"{len(one)} changes, now {len(two)}"


def _plain(caps: float | Mapping[str, float] | None) -> Any:
    return dict(caps) if isinstance(caps, Mapping) else caps

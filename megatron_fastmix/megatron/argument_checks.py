"""Megatron arguments that would cancel the mixture, or what a run can show of it.

Attributes are read with defaults: releases of Megatron-LM differ in the arguments that they have.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.megatron.options import RunOptions

_PACKERS = ("hybrid_context_parallel", "dynamic_context_parallel", "sequence_packing_scheduler")
"""Arguments under which Megatron packs the samples of a step anew; the last two come after 0.20."""

Blend = tuple[list[str], list[float] | None]
"""Prefixes and weights of a split, as Megatron reads them; weights None where it was given none."""


def check_arguments(args: Any, options: RunOptions) -> None:
    """Raises `ConfigError` for parsed arguments under which the mixture would not be what is
    trained on; `args` is Megatron's namespace, after its own validation."""
    if _has(args, "mock_data"):
        raise ConfigError("--mock-data has no sources; give --data-path, or run without fastmix")
    if _has(args, "perform_rl_step"):
        raise ConfigError("--perform-rl-step trains on rollouts, which are no blend; leave one out")
    if _has(args, "phase_transition_iterations"):
        raise ConfigError(
            "--phase-transition-iterations starts the data anew in every phase, so that samples "
            "are no longer counted from the start of the run; leave it out and give the phases as "
            "--fastmix-schedule"
        )
    loader = getattr(args, "dataloader_type", None) or "single"
    if loader == "external":
        raise ConfigError(
            "--dataloader-type external reads data that Megatron's blend does not make; use single"
        )
    if options.schedule is not None:
        check_loader_follows(args)
    if options.weighting == "loss" and not _has(args, "calculate_per_token_loss"):
        raise ConfigError(
            "--fastmix-weighting loss: Megatron divides the loss of each micro-batch by its "
            "loss_mask, which cancels the weights; add --calculate-per-token-loss, or use sampling"
        )


def check_loader_follows(args: Any) -> None:
    """Raises `ConfigError` where samples do not come in the order of their numbers, so that weights
    cannot change on the way."""
    if getattr(args, "dataloader_type", None) == "cyclic":
        raise ConfigError(
            "--dataloader-type cyclic shuffles the samples of the whole run, so weights by "
            "consumed samples do not follow each other; use single where the mixture changes, with "
            "--fastmix-schedule or from a checkpoint of another one on"
        )


def check_blend(training: Blend | None) -> None:
    """Raises `ConfigError` where the training split has no blend that a mixture could weigh."""
    if training is None:
        raise ConfigError("no training data: give --data-path WEIGHT PREFIX ... (or its files)")
    prefixes, weights = training
    if weights is None:
        raise ConfigError(
            f"--data-path lists {', '.join(prefixes[:3])}{' ...' if len(prefixes) > 3 else ''} "
            "without weights: Megatron then reads each sample once, whatever the mixture; write a "
            "weight before each path (any number above 0: the mixture's are used)"
        )


def name_validation_sets(args: Any, prefixes: list[str]) -> None:
    """Has Megatron log the loss of each validation set under the last part of its path, not a
    number, in releases that can, where the user gave no names."""
    if getattr(args, "validation_set_names", ()) is not None:
        return
    names = [PurePath(prefix).name for prefix in prefixes]
    if len(set(names)) < len(names):
        names = [prefix.strip("/").replace("/", "_") for prefix in prefixes]
    args.validation_set_names = names


def hides_sources(args: Any) -> str | None:
    """Why losses by source cannot be told under these arguments; None where they can."""
    loader = getattr(args, "dataloader_type", None) or "single"
    if loader != "single":
        return f"--dataloader-type {loader}: samples do not follow their numbers"
    for name in _PACKERS:
        if _has(args, name):
            return f"--{name.replace('_', '-')}: micro-batches are packed anew"
    if getattr(args, "cuda_graph_impl", None) == "full_iteration" or (
        "full_iteration" in _words(getattr(args, "cuda_graph_scope", None))
    ):
        return "full-iteration CUDA graphs replay the loss without Python"
    packed = _has(args, "sft") or _has(args, "dataloader_inter_document_masking")
    if packed and getattr(args, "context_parallel_size", 1) > 1:
        return "packed sequences under context parallelism are split across samples"
    return None


def cache_note(args: Any) -> str | None:
    """What to do before a run that only reads caches of dataset indices; None for other runs."""
    deferred = ("dataloader_fast_cache_load", "dataloader_defer_npy_index_mmap")
    if not any(_has(args, name) for name in deferred):
        return None
    return (
        "one epoch of each source is indexed, not as many samples as --data-path weights ask for, "
        "so caches of an unpatched prepare_cache.py do not serve: run it as `python -m "
        "megatron_fastmix.megatron tools/prepare_cache.py` with these same arguments"
    )


def _has(args: Any, name: str) -> bool:
    return bool(getattr(args, name, None))


def _words(value: Any) -> list[str]:
    if value is None:
        return []
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return [str(getattr(item, "name", item)) for item in items]

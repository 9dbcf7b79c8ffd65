"""Claiming a run folder: it is new, or of this very search."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.checkpoint.identity import check_identity, identity_of
from megatron_fastmix.checkpoint.store import complete_steps, last_state
from megatron_fastmix.config import SearchConfig, dump_config, strict_yaml
from megatron_fastmix.config.search import OWN_SECTIONS
from megatron_fastmix.corpus.indexed.manifest import read_manifest
from megatron_fastmix.errors import CheckpointError, ConfigError, DataError, StorageError
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.search.earlier_draws import check_draws
from megatron_fastmix.storage import describe, is_storage_error, reason_of
from megatron_fastmix.text_files import read_text

_MAY_DIFFER = re.compile(
    r"run_dir|output\..*|engine\.(zero_stage|distributed_timeout_minutes)|data\.data_cache_path"
    # A checkpoint knows its data by content, and reads every sharding.
    r"|training\.micro_batch_size|(sources|targets)\.\d+\.path(\.\d+)?"
    r"|tokenizer\.(tokenizer_model|vocab_file|merge_file)"
)
"""Keys that may change between the parts of one search: they move no result, but for rounding."""

_MUST_NOT_DIFFER = re.compile(
    r"(sources|targets)\.\d+\.(name|group)|tokenizer\..*|proxy\..*|engine\.(dtype|tensor_model_parallel_size)"
    r"|mixture\.(optimizer|learn)|data\.seq_length"
)
"""Keys of what a checkpoint's numbers mean."""


def claim(config: SearchConfig, *, accept_changes: bool = False) -> RunFolder:
    """Checks the run folder and writes what makes it this search's; see `check_folder` and `mark`.

    Raises what they raise.
    """
    run = check_folder(config, accept_changes=accept_changes)
    mark(run, config)
    return run


def check_folder(config: SearchConfig, *, accept_changes: bool = False) -> RunFolder:
    """The run folder, which is new or of this very search.

    With `accept_changes`, everything may differ that leaves a checkpoint
    its meaning, such as a longer training. Raises `ConfigError` that names each key that differs
    and may not, for checkpoints without a configuration, and for files that no search wrote and
    this one would replace; `DataError` for metrics that a search which resumes could not go on
    with.
    """
    run = RunFolder(Path(config.run_dir))
    folder, kept = run.path, run.config
    steps = complete_steps(run)
    left = config.training.train_iters - max(steps, default=0)
    if kept.exists():
        before = _flat(
            strict_yaml.to_dict(
                _read_kept(kept, begun=bool(steps) or run.sources.exists() or run.metrics.exists())
            )
        )
        now = _flat(strict_yaml.to_dict(config))
        changed = [
            key
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not _MAY_DIFFER.fullmatch(key)
        ]
        fatal = [key for key in changed if _MUST_NOT_DIFFER.fullmatch(key)]
        if config.mixture.weighting == "sampling":  # they say at which draw each past α held
            held = ("mixture.inner_steps", "training.global_batch_size")
            fatal += [key for key in held if key in changed]
        if left < 0:
            fatal.append("training.train_iters")
        if fatal or (changed and not accept_changes):
            listed = "; ".join(
                f"{key}: was {before.get(key)!r}, now {now.get(key)!r}"
                for key in (fatal if accept_changes else changed)
            )
            override = (
                " or choose another run_dir"
                if fatal or not left
                else ", choose another run_dir, or go on with the new values by --accept-changes"
            )
            raise ConfigError(
                f"{folder}: holds a search with another configuration ({listed}); "
                f"set these back to resume it{override}"
            )
    elif run.mixture.exists() and (seeds := read_mixture(folder).seeds):
        raise ConfigError(
            f"{folder}: holds the average of seeds {', '.join(map(str, seeds))}; go on with it by "
            f"--seeds {len(seeds)}, or choose another run_dir"
        )
    elif steps:
        raise ConfigError(
            f"{folder}: holds checkpoints but no {kept.name}, so nothing tells what they were "
            "searched with; put the file back, or choose another run_dir"
        )
    else:
        check_others(run)
    if steps and left and run.metrics.exists():
        read_metrics(run.metrics)  # else rank 0 would end over them alone, and the others wait
    return run


def _read_kept(kept: Path, *, begun: bool) -> SearchConfig:
    """The configuration in a run folder. Raises `ConfigError` for one that no search wrote: `mark`
    would replace it, and with it the user's comments.

    A search's own is a plain dump with every section, of whatever release. Where a search has
    `begun`, the folder is a search's, however the file was edited since.
    """
    values = strict_yaml.load_yaml(kept)
    if not begun and not _is_dump(values, read_text(kept, "the configuration")):
        raise ConfigError(
            f"{kept}: is there, and no search wrote it; this one would write its resolved "
            f"configuration over it: move it out of {kept.parent}, or choose another run_dir"
        )
    config: SearchConfig = strict_yaml.from_dict(SearchConfig, values)
    return config


def _is_dump(values: dict[str, Any], text: str) -> bool:
    return set(OWN_SECTIONS) <= values.keys() and text == yaml.safe_dump(
        values, sort_keys=False, allow_unicode=True
    )


def check_others(run: RunFolder) -> None:
    """Raises `ConfigError` for files that a search would replace in a folder without its
    configuration, which is the first that it writes: they are not a search's."""
    for path in (run.sources, run.metrics, run.mixture, run.blend_txt, run.blend_json, run.picture):
        if path.exists():
            raise ConfigError(
                f"{path}: is there, and no {run.config.name} beside it that would tell that a "
                "search wrote it; this one would write over it: move it away, or choose another "
                "run_dir"
            )


def check_content(
    run: RunFolder, config: SearchConfig, tokenizer_sha256: str, *, accept_changes: bool = False
) -> None:
    """Refuses data that are not those of the newest checkpoint, and draws of another order, as the
    ranks would, before `mark` has written where they lie.

    Raises what `check_identity` and `check_draws` raise. A checkpoint or dataset that cannot be
    read is for those to name who need it.
    """
    try:
        state = last_state(run)
        now = None if state is None else identity_of(config, tokenizer_sha256)
    except (CheckpointError, DataError, OSError):
        return
    if state is not None and now is not None:
        check_identity(state.identity, now, accept_changes=accept_changes)
        check_draws(state, config, accept_changes=accept_changes)


def mark(run: RunFolder, config: SearchConfig) -> None:
    """Writes the configuration and the data's manifests, which tell whose folder it is.

    Raises `StorageError` and `ConfigError` for a folder that cannot be written.
    """
    try:
        write_atomically(run.config, dump_config(config))
        write_atomically(run.sources, _provenance(config))
    except OSError as error:
        if is_storage_error(error):
            told = describe(error, run.path)
            raise StorageError(
                f"run_dir: cannot write {told} and run the same command again"
            ) from None
        raise ConfigError(
            f"run_dir: cannot write to {run.path}: {reason_of(error)}; mend that, or choose "
            "another run_dir"
        ) from None


def _provenance(config: SearchConfig) -> str:
    """The manifests of sources and targets, as JSON: whose text a mixture rests on."""
    entries = []
    for kind, datasets in (("source", config.sources), ("target", config.targets)):
        for dataset in datasets:
            for prefix in dataset.prefixes():
                manifest = read_manifest(prefix)
                known = {} if manifest is None else strict_yaml.to_dict(manifest)
                entries.append(known | {"name": dataset.name, "path": prefix, "kind": kind})
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to plain values."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    flat: dict[str, Any] = {}
    for key, value in items:
        if isinstance(value, dict | list):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

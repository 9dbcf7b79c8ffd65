"""What earlier runs left at the same prefix, and would be taken for a part of what is there now."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from megatron_fastmix.corpus.indexed.manifest import (
    InputRecord,
    Manifest,
    manifest_path,
    read_manifest,
)
from megatron_fastmix.corpus.indexed.output_lock import locked_outputs
from megatron_fastmix.corpus.indexed.own_files import PARTIALS, is_loss_mask, is_manifest
from megatron_fastmix.dataset_paths import MASK_SUFFIX
from megatron_fastmix.errors import DataError


def remove_companions(prefix: str, *, masked: bool, held_out: bool) -> None:
    """Removes the loss mask and the digests of an earlier dataset at `prefix`, where the new one
    has none. Raises `OSError`."""
    mask = f"{prefix}{MASK_SUFFIX}"
    if not masked:
        _unlink(mask, PARTIALS)
        if is_loss_mask(mask):
            _unlink(mask, (".idx", ".bin"))
    if not held_out and is_manifest(f"{prefix}.json"):
        _unlink(prefix, (".digests",))


def remove_dataset(prefix: str) -> None:
    """Removes the dataset of ours at `prefix`; its manifest last. Raises `OSError`."""
    if is_manifest(f"{prefix}.json"):
        remove_companions(prefix, masked=False, held_out=False)
        _unlink(prefix, (".idx", ".bin"))
        manifest_path(prefix).unlink(missing_ok=True)


def remove_earlier_parts(
    prefix: str,
    written: Collection[str],
    inputs: Iterable[InputRecord],
    report: Callable[[str], None],
) -> None:
    """Removes the parts of an earlier split at `prefix` that are not `written` now and hold text
    of the same `inputs`, which a folder or a pattern would read twice; `report` is told.

    Tells on stderr of what may be wanted still: parts of other inputs, and a dataset from before
    the split. Raises `OSError`.
    """
    paths = {record.path for record in inputs}
    known = set(map(os.path.abspath, written))
    for path in (f"{prefix}.json", *sorted(glob.glob(f"{glob.escape(prefix)}_*.json"))):
        each = path.removesuffix(".json")
        if os.path.abspath(each) in known or not is_manifest(path):
            continue
        manifest = _readable(each)
        if manifest is None or (each != prefix and manifest.part_of != Path(prefix).name):
            continue
        if each != prefix and any(record.path in paths for record in manifest.inputs):
            with locked_outputs([each], report):
                remove_dataset(each)
            report(f"{each}: removed, a part of an earlier split of the same inputs")
        else:
            print(
                f"note: {each}: left by an earlier run at {prefix}, and no part of this one; "
                "remove it, or a folder or a pattern reads it beside the new data",
                file=sys.stderr,
            )


def _readable(prefix: str) -> Manifest | None:
    try:
        return read_manifest(prefix)
    except DataError:  # damaged, so that nothing is known of it
        return None


def _unlink(prefix: str, ends: Iterable[str]) -> None:
    for end in ends:
        Path(f"{prefix}{end}").unlink(missing_ok=True)

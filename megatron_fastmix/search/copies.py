"""Whether a target has the very content of a source, under another path."""

from __future__ import annotations

import os
from collections.abc import Sequence

from megatron_fastmix.checkpoint.identity import fingerprint, sample_bytes_for
from megatron_fastmix.errors import DataError


def check_targets_are_no_copies(
    sources: Sequence[tuple[str, str]], targets: Sequence[tuple[str, str]]
) -> None:
    """Raises `DataError` for a dataset of a target that is a copy of one of a source; both are
    given as (name, prefix).

    Content is looked at where the sizes of both files are equal, so seldom.
    """
    by_size: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for name, prefix in sources:
        by_size.setdefault(_sizes(prefix), []).append((name, prefix))
    sample = sample_bytes_for(len(sources) + len(targets))
    for name, prefix in targets:
        for source, other in by_size.get(_sizes(prefix), ()):
            if fingerprint(prefix, sample) == fingerprint(other, sample):
                raise DataError(
                    f"target {name} ({prefix}): has the content of source {source} ({other}); a "
                    "target must not be a source: hold other documents out, or leave one out"
                )


def _sizes(prefix: str) -> tuple[int, int]:
    return os.path.getsize(f"{prefix}.idx"), os.path.getsize(f"{prefix}.bin")

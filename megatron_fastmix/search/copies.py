"""Whether a target has the very content of a source, under another path."""

from __future__ import annotations

import os

from megatron_fastmix.checkpoint.identity import fingerprint, sample_bytes_for
from megatron_fastmix.config import SearchConfig


def copied_targets(config: SearchConfig) -> list[str]:
    """A line for each dataset of a target that is a copy of one of a source.

    Small corpora and first tries have such targets, so it is said and not refused. Content is
    looked at where the sizes of both files are equal, so seldom. All datasets must be there.
    """
    by_size: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for source in config.sources:
        for prefix in source.prefixes():
            by_size.setdefault(_sizes(prefix), []).append((source.name, prefix))
    sample = sample_bytes_for(len(config.prefixes()))
    return [
        f"target {target.name} ({prefix}) has the content of source {name} ({other}): its loss is "
        "that of documents which the proxy trains on; hold other documents out"
        for target in config.targets
        for prefix in target.prefixes()
        for name, other in by_size.get(_sizes(prefix), ())
        if fingerprint(prefix, sample) == fingerprint(other, sample)
    ]


def _sizes(prefix: str) -> tuple[int, int]:
    return os.path.getsize(f"{prefix}.idx"), os.path.getsize(f"{prefix}.bin")

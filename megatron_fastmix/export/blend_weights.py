"""A blend of the user's own in the terms of a search: a weight for each of its sources."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.import_blend import read_blend, read_named_blend
from megatron_fastmix.export.nemotron import source_of
from megatron_fastmix.result.learned_mixture import LearnedMixture


def read_blend_weights(path: str | Path, mixture: LearnedMixture) -> dict[str, float]:
    """Shares of loss tokens by source of `mixture`, summing to 1, that the blend in the file gives.

    The file is what `read_blend` or `read_named_blend` reads; its shares are of the samples that
    Megatron draws. Datasets are told by path, or by name where the file has names; a source that it
    lacks has 0. Raises `DataError` as they do, and for a dataset that is in no source.
    """
    named = read_named_blend(path)
    if named is None:
        given = list(read_blend(path).items())
        owners = {
            os.path.realpath(shard.path): source.name
            for source in mixture.sources
            for shard in source.shards
        }
        what = "dataset"
    else:
        given = [(entry.name, entry.share) for entry in named]
        owners = {source.name: source.name for source in mixture.sources}
        what = "source"
    weights = dict.fromkeys(mixture.weights, 0.0)
    for entry, share in given:
        key = os.path.realpath(entry) if named is None else source_of(entry, owners)
        if key not in owners:
            raise DataError(
                f"{path}: {key} is no {what} of the search, whose are {', '.join(owners)}; "
                "write them the same way in both"
            )
        weights[owners[key]] += share
    return mixture.weights_of("samples", weights)

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
        shares = {os.path.abspath(prefix): share for prefix, share in read_blend(path).items()}
        owners = {
            os.path.abspath(shard.path): source.name
            for source in mixture.sources
            for shard in source.shards
        }
        what = "dataset"
    else:
        owners = {source.name: source.name for source in mixture.sources}
        shares = dict.fromkeys((source_of(entry.name, owners) for entry in named), 0.0)
        for entry in named:
            shares[source_of(entry.name, owners)] += entry.share
        what = "source"
    weights = dict.fromkeys(mixture.weights, 0.0)
    for prefix, share in shares.items():
        if prefix not in owners:
            raise DataError(
                f"{path}: {prefix} is no {what} of the search, whose are {', '.join(owners)}; "
                "write them the same way in both"
            )
        weights[owners[prefix]] += share
    return mixture.weights_of("samples", weights)

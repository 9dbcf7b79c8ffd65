"""Paths of datasets as another machine has them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

from megatron_fastmix.corpus.tokenizers.hub_names import is_cached
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.sizes import Shard

_TOKENIZER_FILES = ("tokenizer_model", "vocab_file", "merge_file")


def read_path_map(texts: Sequence[str]) -> dict[str, str]:
    """From `OLD=NEW` texts. Raises `ConfigError`."""
    found: dict[str, str] = {}
    for text in texts:
        old, separator, new = text.partition("=")
        if not separator or not old or not new:
            raise ConfigError(f"--path-map {text}: expected OLD=NEW, such as /local/data=/lustre/d")
        if old in found:
            raise ConfigError(f"--path-map {text}: {old} is given twice")
        found[old] = new
    return found


def map_path(path: str, path_map: Mapping[str, str]) -> str:
    """`path` made absolute, its longest beginning among the keys replaced by that key's value.

    Whole parts of the path are compared: /data does not begin /data2/x. A relative key is taken
    from the working directory, as the path is.
    """
    absolute = os.path.abspath(path)
    for old in sorted(path_map, key=len, reverse=True):
        start = os.path.abspath(old)
        if _begins(absolute, start):
            return path_map[old].rstrip("/") + absolute[len(start.rstrip("/")) :]
    return absolute


def _begins(path: str, start: str) -> bool:
    return path == start or path.startswith(start.rstrip("/") + "/")


def not_here(mixture: LearnedMixture) -> str | None:
    """The first source's prefix that is relative, as the search's configuration had it, and is no
    dataset below the working directory; None where all are."""
    paths = (shard.path for source in mixture.sources for shard in source.shards)
    return next((p for p in paths if not os.path.isabs(p) and not os.path.exists(f"{p}.idx")), None)


def where_it_trains(
    mixture: LearnedMixture, path_map: Sequence[str]
) -> tuple[LearnedMixture, list[str]]:
    """The mixture with its paths as the texts of `--path-map` have them, and a note where they are
    relative to another folder. Raises `ConfigError` where such paths are to be mapped."""
    lost = not_here(mixture)
    if lost and path_map:
        raise ConfigError(
            f"--path-map: {lost} is relative to the folder that the search ran in, and is not "
            "here; run this command there"
        )
    if path_map:
        olds = read_path_map(path_map)
        named = [path for source in mixture.sources for path in source.prefixes]
        named += [path for target in mixture.targets for path in target.prefixes]
        paths = [os.path.abspath(p) for p in (*named, *_tokenizer_files(mixture).values())]
        return mapped(mixture, olds), [
            f"note: --path-map {old}={new}: no path begins with {old}"
            for old, new in olds.items()
            if not any(_begins(path, os.path.abspath(old)) for path in paths)
        ]
    note = f"note: paths are relative to the folder that the search ran in, such as {lost}"
    return mixture, [note] if lost else []


def tokenizer_not_here(mixture: LearnedMixture) -> str | None:
    """The same of the tokenizer's files; a model's name that the Hugging Face Hub's cache of this
    host has is none."""
    return next(
        (
            path
            for path in _tokenizer_files(mixture).values()
            if not os.path.isabs(path) and not os.path.exists(path) and not is_cached(path)
        ),
        None,
    )


def _tokenizer_files(mixture: LearnedMixture) -> dict[str, str]:
    tokenizer = mixture.config.get("tokenizer", {})
    return {key: tokenizer[key] for key in _TOKENIZER_FILES if tokenizer.get(key)}


def mapped(mixture: LearnedMixture, path_map: Mapping[str, str]) -> LearnedMixture:
    """The mixture with absolute, mapped paths of sources, targets and the tokenizer's files; a
    relative one of these that is not here may be a model's name, and stays."""
    files = {
        key: map_path(path, path_map)
        for key, path in _tokenizer_files(mixture).items()
        if os.path.isabs(path) or os.path.exists(path)
    }
    tokenizer = {"tokenizer": mixture.config["tokenizer"] | files} if files else {}
    return dataclasses.replace(
        mixture,
        config=mixture.config | tokenizer,
        sources=tuple(
            dataclasses.replace(source, shards=_mapped_shards(source.shards, path_map))
            for source in mixture.sources
        ),
        targets=tuple(
            dataclasses.replace(
                target,
                path=map_path(target.path, path_map),
                shards=_mapped_shards(target.shards, path_map),
            )
            for target in mixture.targets
        ),
    )


def _mapped_shards(shards: tuple[Shard, ...], path_map: Mapping[str, str]) -> tuple[Shard, ...]:
    return tuple(
        dataclasses.replace(shard, path=map_path(shard.path, path_map)) for shard in shards
    )

"""From learned mixtures and a configuration to a checked setting. Imports no torch."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_fastmix.config import TokenizerConfig, strict_yaml
from megatron_fastmix.corpus.answer_rows import is_answer_only, read_answer_rows
from megatron_fastmix.corpus.indexed_files import check_vocabulary, inspect_indexed_dataset
from megatron_fastmix.corpus.manifest import check_same_tokenizer, read_manifest
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.dataset_paths import DatasetPath, find_datasets, only_dataset
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.lab.comparison.config import DATA_FLAGS, CompareConfig, Dataset, Setting
from megatron_fastmix.proxy.starting_point import check_starting_point
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.sizes import Shard
from megatron_fastmix.same_file import same_dataset


def read_learned(paths: Sequence[str]) -> dict[str, LearnedMixture]:
    """The learned mixtures by name: `learned`, or with several `learned:` and the run's folder.

    Raises `DataError`, and `ConfigError` where they are not about the same sources.
    """
    mixtures = [read_mixture(path) for path in paths]
    first = mixtures[0]
    for path, mixture in zip(paths, mixtures, strict=True):
        for what, of in (
            ("sources", lambda m: [(source.name, source.path) for source in m.sources]),
            ("tokenizer", lambda m: m.config.get("tokenizer")),
            ("seq_length", lambda m: m.seq_length),
        ):
            if of(mixture) != of(first):
                raise ConfigError(
                    f"--mixture {path}: its {what} is {of(mixture)}, that of {paths[0]} is "
                    f"{of(first)}; compare mixtures of the same {what} only"
                )
    if len(mixtures) == 1:
        return {"learned": first}
    folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in paths]
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigError(f"--mixture: found {list(paths)}; give each mixture once")
    return {f"learned:{name}": mixture for name, mixture in zip(names, mixtures, strict=True)}


def make_setting(config: CompareConfig, mixture: LearnedMixture, where: str) -> Setting:
    """The setting in which mixtures such as `mixture`, read from `where`, are compared.

    Raises as `check_setting`.
    """
    if not isinstance(mixture.config.get("tokenizer"), dict):
        raise DataError(f"{where}: config.tokenizer is missing; take mixture.json from a run")
    tokenizer = strict_yaml.from_dict(
        TokenizerConfig, mixture.config["tokenizer"], "config.tokenizer"
    )
    return check_setting(
        config,
        sources=mixture.sources,
        targets=mixture.targets,
        tokenizer_config=tokenizer,
        seq_length=mixture.seq_length,
        data=mixture.config.get("data", {}),
    )


class NamedData(Protocol):
    """A source or a target of a search."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> DatasetPath: ...


def check_setting(
    config: CompareConfig,
    *,
    sources: Sequence[NamedData],
    targets: Sequence[NamedData],
    tokenizer_config: TokenizerConfig,
    seq_length: int,
    data: Mapping[str, Any],
) -> Setting:
    """Checks every dataset. Raises `ConfigError` or `DataError`.

    `sources`, `targets`, `seq_length` and the plain values `data` are those of the searches. A test
    set that is one of them is refused, whether by name or by content.
    """
    if not config.tests:
        raise ConfigError(
            "--test: none given; name held-out data that the search never saw, as --test "
            "NAME=PREFIX or as `tests` in --config"
        )
    tokenizer = load_tokenizer(**vars(tokenizer_config))
    check_starting_point(config.model, tokenizer_config, tokenizer.vocab_size)
    seq_length = config.seq_length or seq_length
    total = sum(test.weight for test in config.tests)

    def describe(name: str, path: str, weight: float = 1.0) -> Dataset:
        summary = inspect_indexed_dataset(path)
        tokens = summary.tokens
        if is_answer_only(path):
            tokens = int(read_answer_rows(path, seq_length).answer_tokens.sum())
        elif tokens < seq_length + 1:
            raise DataError(
                f"{name} ({path}): found {summary.tokens} tokens, fewer than one sample of "
                f"{seq_length + 1}; give it more text or lower --seq-length"
            )
        check_vocabulary(path, tokenizer.vocab_size)
        manifest = read_manifest(path)
        return Dataset(
            name=name,
            path=path,
            tokens=tokens,
            sha256=manifest.bin_sha256 if manifest else None,
            weight=weight,
        )

    described = tuple(
        describe(source.name, only_dataset(source.path, f"source {source.name}"))
        for source in sources
    )
    tests = tuple(
        describe(test.name, only_dataset(test.path, f"test {test.name}"), test.weight / total)
        for test in config.tests
    )
    check_same_tokenizer({d.path: d.path for d in (*described, *tests)}, tokenizer.sha256)
    for test in tests:
        for role, seen in (("source", sources), ("target", targets)):
            for dataset in seen:
                for prefix in _prefixes(dataset, role):
                    if _same_data(test.path, prefix):
                        raise ConfigError(
                            f"--test {test.name}: {test.path} is {role} {dataset.name} of the "
                            f"search ({prefix}); test on data that the search never saw"
                        )
    return Setting(
        sources=described,
        tests=tests,
        tokenizer=tokenizer_config,
        tokenizer_sha256=tokenizer.sha256,
        seq_length=seq_length,
        model=config.model,
        training=config.training,
        eval_samples=config.eval_samples,
        **{flag: bool(data.get(flag, False)) for flag in DATA_FLAGS},
    )


def _prefixes(data: NamedData, role: str) -> tuple[str, ...]:
    """Those of all its datasets; a learned target lists them where it has several."""
    shards: Sequence[Shard] = getattr(data, "shards", ())
    return tuple(s.path for s in shards) or find_datasets(data.path, f"{role} {data.name}")


def _same_data(prefix: str, other: str) -> bool:
    if same_dataset(prefix, other):
        return True
    a, b = f"{prefix}.bin", f"{other}.bin"
    return os.path.exists(b) and filecmp.cmp(a, b, shallow=False)

"""From learned mixtures and a configuration to a checked setting. Imports no torch."""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_fastmix.config import TokenizerConfig, strict_yaml
from megatron_fastmix.corpus.indexed.answer_rows import check_mask, check_one_kind, read_answer_rows
from megatron_fastmix.corpus.indexed.indexed_files import check_vocabulary, inspect_indexed_dataset
from megatron_fastmix.corpus.indexed.manifest import check_same_tokenizer, read_manifest
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.dataset_paths import find_datasets
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.lab.comparison.config import DATA_FLAGS, CompareConfig, Dataset, Setting
from megatron_fastmix.proxy.starting_point import check_starting_point
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.same_file import dataset_keys
from megatron_fastmix.search.inputs import VOCABULARY_TOKENS


def read_learned(paths: Sequence[str]) -> dict[str, LearnedMixture]:
    """The learned mixtures by name: `learned`, or with several `learned:` and the run's folder.

    Raises `DataError`, and `ConfigError` where they are not about the same sources.
    """
    mixtures = [read_mixture(path) for path in paths]
    first = mixtures[0]
    for path, mixture in zip(paths, mixtures, strict=True):
        for what, of in (
            ("sources", lambda m: {source.name: source.prefixes for source in m.sources}),
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
        sources={source.name: source.prefixes for source in mixture.sources},
        targets={target.name: target.prefixes for target in mixture.targets},
        tokenizer_config=tokenizer,
        seq_length=mixture.seq_length,
        data=mixture.config.get("data", {}),
    )


def check_setting(
    config: CompareConfig,
    *,
    sources: Mapping[str, Sequence[str]],
    targets: Mapping[str, Sequence[str]],
    tokenizer_config: TokenizerConfig,
    seq_length: int,
    data: Mapping[str, Any],
) -> Setting:
    """Checks every dataset. Raises `ConfigError` or `DataError`.

    `sources` and `targets`, by name the prefixes of their datasets, `seq_length` and the plain
    values `data` are those of the searches. A test set that is one of them is refused, whether by
    name or by content.
    """
    if not config.tests:
        raise ConfigError(
            "--test: none given; name held-out data that the search never saw, as --test "
            "NAME=PREFIX or as `tests` in --config"
        )
    tokenizer = load_tokenizer(**vars(tokenizer_config))
    seq_length = config.seq_length or seq_length
    known_ids = check_starting_point(config.model, tokenizer_config, tokenizer, seq_length)
    total = sum(test.weight for test in config.tests)

    of_tests = {test.name: find_datasets(test.path, f"test {test.name}") for test in config.tests}
    ids = VOCABULARY_TOKENS // sum(map(len, (*sources.values(), *of_tests.values())))

    def loss_tokens(name: str, path: str, answer_only: bool) -> int:
        tokens = inspect_indexed_dataset(path).tokens
        check_vocabulary(path, known_ids, max_tokens=max(1, ids))
        if answer_only:
            return int(read_answer_rows(path, seq_length).answer_tokens.sum())
        if tokens < seq_length + 1:
            raise DataError(
                f"{name} ({path}): found {tokens} tokens, fewer than one sample of "
                f"{seq_length + 1}; give it more text or lower --seq-length"
            )
        return tokens

    described = tuple(_describe(name, each, loss_tokens) for name, each in sources.items())
    tests = tuple(
        _describe(test.name, of_tests[test.name], loss_tokens, test.weight / total)
        for test in config.tests
    )
    prefixes = [prefix for dataset in (*described, *tests) for prefix in dataset.shards]
    check_same_tokenizer({prefix: prefix for prefix in prefixes}, tokenizer.sha256)
    _check_unseen(of_tests, {"source": sources, "target": targets})
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


def _describe(
    name: str, prefixes: Sequence[str], count: Callable[[str, str, bool], int], weight: float = 1.0
) -> Dataset:
    """`count` gives the tokens in the loss of a name's dataset, which is answer-only or not."""
    answer_only = {prefix: check_mask(prefix) for prefix in prefixes}
    check_one_kind(name, answer_only)
    manifests = [read_manifest(prefix) for prefix in prefixes]
    sums = [manifest.bin_sha256 for manifest in manifests if manifest]
    sha256 = sums[0] if sums else None
    if len(prefixes) > 1 and sha256:
        sha256 = hashlib.sha256("".join(sums).encode()).hexdigest()
    return Dataset(
        name=name,
        shards={prefix: count(name, prefix, answer_only[prefix]) for prefix in prefixes},
        sha256=sha256 if len(sums) == len(prefixes) else None,
        weight=weight,
    )


def _check_unseen(
    tests: Mapping[str, Sequence[str]], searched: Mapping[str, Mapping[str, Sequence[str]]]
) -> None:
    """Raises `ConfigError` for a dataset of `tests`, prefixes by name, that is one of `searched`,
    by role and name, whether by its files or by their content."""
    known: dict[Hashable, tuple[str, str]] = {}
    by_size: dict[int, list[tuple[str, str]]] = {}
    for name, prefixes in tests.items():
        for prefix in prefixes:
            known |= dict.fromkeys(dataset_keys(prefix), (name, prefix))
            by_size.setdefault(os.path.getsize(f"{prefix}.bin"), []).append((name, prefix))
    for role, owners in searched.items():
        for owner, prefixes in owners.items():
            for prefix in prefixes:
                found = [known[key] for key in dataset_keys(prefix) if key in known]
                other = f"{prefix}.bin"
                if not found and os.path.exists(other):
                    found = [
                        (name, each)
                        for name, each in by_size.get(os.path.getsize(other), [])
                        if filecmp.cmp(f"{each}.bin", other, shallow=False)
                    ]
                for name, each in found:
                    raise ConfigError(
                        f"--test {name}: {each} is {role} {owner} of the search ({prefix}); test "
                        "on data that the search never saw"
                    )

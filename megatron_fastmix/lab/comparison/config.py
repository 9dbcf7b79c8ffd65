"""What a comparison trains and measures, and how one is told from another."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_fastmix.config import (
    ProxyConfig,
    TargetConfig,
    TokenizerConfig,
    TrainingConfig,
    strict_yaml,
)
from megatron_fastmix.errors import ConfigError


def _target_training() -> TrainingConfig:
    # 0.35 million tokens at length 256: 80 seconds of one core with the evaluation.
    return TrainingConfig(train_iters=170, micro_batch_size=8, global_batch_size=8)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """The target model, its training, and how many mixtures are compared over how many seeds."""

    tests: tuple[TargetConfig, ...] = ()
    """Held-out data whose loss is compared; neither a source nor a target of the search."""
    seq_length: int | None = None
    """Tokens per sample; default: the one that the weights were learned for."""
    model: ProxyConfig = field(default_factory=ProxyConfig)
    """The target model, of the proxy's architecture; to compare mixtures for fine-tuning, with the
    `checkpoint` or `path` that it starts from."""
    training: TrainingConfig = field(default_factory=_target_training)
    """How the target model is trained, the same under every mixture."""
    num_seeds: int = 3
    """Trainings of the learned, uniform and proportional mixtures: seeds 1, 2, ..."""
    other_seeds: int = 1
    """Trainings of each single source and each random draw."""
    random_draws: int = 16
    """Mixtures drawn from a flat Dirichlet distribution."""
    draw_seed: int = 0
    """Seed of these draws; draw j does not depend on their number."""
    eval_samples: int | None = 2048
    """Samples of each test set that are evaluated, the same for every row; null: all."""

    def __post_init__(self) -> None:
        lowest = {"num_seeds": 1, "other_seeds": 1, "random_draws": 0, "eval_samples": 1}
        for name, least in lowest.items():
            found = getattr(self, name)
            if found is not None and found < least:
                raise ConfigError(f"{name}: found {found}; use at least {least}")
        if self.seq_length is not None and self.seq_length < 2:
            raise ConfigError(f"seq_length: found {self.seq_length}; use at least 2")
        twice = [n for n, count in Counter(t.name for t in self.tests).items() if count > 1]
        if twice:
            raise ConfigError(f"tests: found {twice} twice; names are unique, rename one")
        weights = [test.weight for test in self.tests]
        if weights and (min(weights) < 0 or sum(weights) <= 0):
            raise ConfigError(f"tests: found weights {weights}; use 0 or more, and not all 0")
        training = self.training
        if training.global_batch_size % training.micro_batch_size:
            raise ConfigError(
                f"training.global_batch_size: found {training.global_batch_size}; it must be a "
                f"multiple of micro_batch_size {training.micro_batch_size}"
            )


def load_compare_config(
    path: str | Path | None, overrides: Sequence[str], tests: Sequence[str]
) -> CompareConfig:
    """Reads `path` (none: defaults) and applies `--key=value` overrides and NAME=PREFIX tests.

    Raises `ConfigError`.
    """
    values = strict_yaml.load_yaml(path) if path else {}
    training = values.get("training", {})
    if isinstance(training, dict):  # anything else is refused below
        values["training"] = strict_yaml.to_dict(_target_training()) | training
    if tests:
        values["tests"] = [_parse_test(text) for text in tests]
    values = strict_yaml.apply_overrides(CompareConfig, values, overrides)
    return strict_yaml.from_dict(CompareConfig, values)


def _parse_test(text: str) -> dict[str, str]:
    name, separator, prefix = text.partition("=")
    if not (name and separator and prefix):
        raise ConfigError(f"--test: found {text!r}; write NAME=PREFIX of an indexed dataset")
    return {"name": name, "path": prefix}


DATA_FLAGS = ("eod_mask_loss", "reset_position_ids", "reset_attention_mask")
"""Keys of `data` that say how documents share a sample."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A source or a test set of a comparison: one indexed dataset or several."""

    name: str
    shards: dict[str, int]
    """Tokens that count in the loss, by prefix, without .bin and .idx."""
    sha256: str | None
    """Of PREFIX.bin, from its manifest, or of the list of these where there are several; none where
    one has no manifest."""
    weight: float = 1.0
    """Share in the target loss; without meaning for a source."""

    @property
    def tokens(self) -> int:
        """Tokens that count in the loss."""
        return sum(self.shards.values())


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All that a row depends on, besides its mixture and its seed."""

    sources: tuple[Dataset, ...]
    tests: tuple[Dataset, ...]
    """Their weights sum to 1."""
    tokenizer: TokenizerConfig
    tokenizer_sha256: str
    seq_length: int
    model: ProxyConfig
    training: TrainingConfig
    eval_samples: int | None
    eod_mask_loss: bool = False
    """These three as in `data` of the searches."""
    reset_position_ids: bool = False
    reset_attention_mask: bool = False

    @property
    def digest(self) -> str:
        """Hash under which rows belong together; where files lie does not enter it."""
        return key_of(self.identity())

    def identity(self) -> dict[str, Any]:
        """The values behind `digest`, by dotted key."""
        values = strict_yaml.to_dict(self)
        # Younger keys at their defaults leave the hash of older rows as it was.
        defaults = vars(TokenizerConfig(tokenizer_type=""))
        values["tokenizer"] = {
            name: value
            for name, value in values["tokenizer"].items()
            if name not in {"tokenizer_model", "vocab_file", "merge_file"}
            and value != defaults[name]
        }
        for flag in DATA_FLAGS:
            if not values[flag]:
                del values[flag]
        for dataset in (*values["sources"], *values["tests"]):
            dataset["tokens"] = sum(dataset.pop("shards").values())
        for key in ("sources", "tests"):
            values[key] = {dataset.pop("name"): dataset for dataset in values[key]}
        return flatten(values)


def key_of(values: Mapping[str, Any]) -> str:
    """A short hash of nested plain values, the same for any order of their keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_defaults(identity: dict[str, Any]) -> dict[str, Any]:
    """`identity` of a setting with the keys of model and training that are younger than it."""
    parts = {"model": ProxyConfig(), "training": TrainingConfig()}
    younger = {name: strict_yaml.to_dict(part) for name, part in parts.items()}
    return flatten(younger | dict.fromkeys(DATA_FLAGS, False)) | identity


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    items: dict[str, Any] = {}
    for key, value in values.items():
        at = f"{prefix}{key}"
        items |= flatten(value, f"{at}.") if isinstance(value, dict) else {at: value}
    return items

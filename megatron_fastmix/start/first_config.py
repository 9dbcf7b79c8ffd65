"""A first configuration for the data that a user has, with the reasons for what it chose.

Imports neither torch nor Megatron.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.indexed.answer_rows import is_answer_only
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.corpus.indexed.manifest import read_manifest
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.dataset_paths import find_datasets, nearest_dataset, what_stands_there
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.import_blend import shares_of_loss_tokens
from megatron_fastmix.same_file import dataset_keys

SHIPPED = Path(__file__).parent.parent / "configurations"
"""The folder of the shipped configurations."""
HELD_OUT = re.compile(
    r"(?<![a-z])(val|valid|validation|eval|targets?|held[_-]?out|tests?|dev)(?![a-z])",
    re.IGNORECASE,
)
"""A word in a dataset's name that makes it a target where none is named."""
TEST = re.compile(r"(?<![a-z])tests?(?![a-z])", re.IGNORECASE)
"""The one of them that makes it none where another dataset is a target by another word."""
OUTER_STEPS = 100
"""At least so many outer steps."""
EPOCHS = 4
"""No source is read more often in the search (Muennighoff et al., arXiv 2305.16264)."""


@dataclass(kw_only=True)
class FirstConfig:
    """Values of a configuration, and a reason for each choice."""

    values: dict[str, Any]
    reasons: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The YAML file, its reasons as comments at the head."""
        head = "".join(
            f"# {line}\n" for line in ["Written by megatron-fastmix init.", *self.reasons]
        )
        return head + yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True)


def shipped_configurations() -> dict[str, str]:
    """The shipped configurations: name to text."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(SHIPPED.glob("*.yaml"))}


def find_prefixes(places: Sequence[str], where: str) -> list[str]:
    """Prefixes of the indexed datasets at `places`, each a prefix, a folder or a pattern; `where`
    names the flag in errors. Raises `DataError`."""
    return there(find_datasets(places, where), where)


def there(prefixes: Iterable[str], where: str) -> list[str]:
    """`prefixes`, each of a dataset that is there, or else `DataError`."""
    found = list(prefixes)
    for prefix in found:
        if not Path(f"{prefix}.idx").exists():
            near = nearest_dataset(prefix) or what_stands_there(prefix)
            raise DataError(f"{where}: there is no dataset {prefix} ({prefix}.idx); {near}")
    return found


def first_config(
    prefixes: Sequence[str],
    targets: Sequence[str],
    *,
    shares: Mapping[str, float] | None = None,
    huggingface: str | None = None,
    tokenizer: TokenizerConfig | None = None,
    run_dir: str = "runs/search",
) -> FirstConfig:
    """A configuration for these datasets.

    Args:
        prefixes: of datasets that are there; those that are targets, too, are no sources.
        shares: of a blend, by prefix.
        huggingface: folder of the model to start from.
        tokenizer: None for the model's, or that of the data's manifest.

    Raises `ConfigError` and `DataError`.
    """
    if huggingface is not None and not (Path(huggingface) / "config.json").is_file():
        raise ConfigError(
            f"--huggingface: {huggingface} holds no config.json; give the folder of a model that "
            "is here (config.json, safetensors, tokenizer.json)"
        )
    sources, held_out, reasons = _split(prefixes, targets)
    tokens = {prefix: inspect_indexed_dataset(prefix).tokens for prefix in sources}
    answers = any(map(is_answer_only, sources))
    template = _template(sum(tokens.values()), answers, huggingface)
    values: dict[str, Any] = yaml.safe_load(shipped_configurations()[template])
    reasons.append(
        f"proxy: as in the shipped {template}, for {sum(tokens.values()):,} tokens of "
        + ("rows with answers" if answers else "text")
    )
    values["run_dir"] = run_dir
    values["sources"] = [{"name": name, "path": path} for name, path in _named(sources)]
    values["targets"] = [{"name": name, "path": path} for name, path in _named(held_out)]
    if len(held_out) == 1:
        values.get("objective", {}).pop("target_aggregation", None)
        if values.get("objective") == {}:
            del values["objective"]
    values["tokenizer"] = _tokenizer(sources[0], tokenizer, huggingface)
    if huggingface is not None:
        values["proxy"]["path"] = huggingface
    if shares is not None:
        shares = shares_of_loss_tokens(shares, values["data"]["seq_length"])
        of_sources = sum(shares[prefix] for prefix in sources)
        values["mixture"]["initial_weights"] = [
            float(f"{shares[prefix] / of_sources:.6g}") for prefix in sources
        ]
        reasons.append("mixture.initial_weights: your blend's, as Megatron reads them")
        if dropped := [prefix for prefix in shares if prefix not in sources]:
            reasons[-1] += f", but for {', '.join(dropped)}, held out"
    _fit_to_tokens(values, tokens, reasons, answers)
    return FirstConfig(values=values, reasons=reasons)


def _split(
    prefixes: Sequence[str], targets: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """Sources, targets and why."""
    named = list(targets)
    tests: list[str] = []
    reasons = ["targets: as named"]
    if not named:
        named = [prefix for prefix in prefixes if HELD_OUT.search(Path(prefix).name)]
        reasons = [f"targets: {', '.join(named)}, held out by their names"]
        tests = [p for p in named if not HELD_OUT.search(TEST.sub("", Path(p).name))]
        if 0 < len(tests) < len(named):
            named = [prefix for prefix in named if prefix not in tests]
            reasons = [
                f"targets: {', '.join(named)}, held out by their names",
                f"left out: {', '.join(tests)}, kept for tests by their names (--target takes "
                "them, too)",
            ]
    if not named:
        raise ConfigError(
            "found no held-out dataset among the data: name one with --target PREFIX; it should "
            "resemble what the final model is for"
        )
    keys = set().union(*map(dataset_keys, [*named, *tests]))
    sources = [prefix for prefix in prefixes if keys.isdisjoint(dataset_keys(prefix))]
    if len(sources) < 2:
        raise ConfigError(
            f"found {len(sources)} {'source' if len(sources) == 1 else 'sources'} beside the "
            f"targets {', '.join(named)}; a mixture needs 2 or more to choose from"
        )
    return sources, named, reasons


def _template(tokens: int, answers: bool, huggingface: str | None) -> str:
    if huggingface is not None:
        return "sft_qwen2_1_5b" if answers else "midtrain_from_huggingface"
    if answers:
        raise ConfigError(
            "the data are rows with answers: name the model that is fine-tuned with --huggingface "
            "FOLDER, or start from --template midtrain_from_megatron"
        )
    if tokens < 5e9:
        return "pretrain_15m"
    return "pretrain_160m" if tokens < 5e11 else "pretrain_1b_zero3"


def _named(prefixes: Sequence[str]) -> list[tuple[str, str]]:
    """Names by as many last parts of the paths as tell them apart."""
    deepest = max(len(Path(prefix).parts) for prefix in prefixes)
    names: list[str] = []
    for parts in range(1, deepest + 1):
        names = ["_".join(Path(p).parts[-parts:]).removesuffix("_text_document") for p in prefixes]
        if len(set(names)) == len(names):
            break
    return list(zip(names, prefixes, strict=True))


def _tokenizer(
    prefix: str, given: TokenizerConfig | None, huggingface: str | None
) -> dict[str, Any]:
    """The tokenizer as named, or the model's, or the one that wrote `prefix`, by its manifest; one
    that loads."""
    manifest = read_manifest(prefix)
    record = None if manifest is None else manifest.tokenizer
    if given is None and huggingface is not None:
        given = TokenizerConfig(
            tokenizer_type="HuggingFaceTokenizer", tokenizer_model=f"{huggingface}/tokenizer.json"
        )
    if given is None and record is not None:
        given = TokenizerConfig(
            tokenizer_type=record.tokenizer_type,
            tokenizer_model=_beside(prefix, record.tokenizer_model),
        )
    if given is None:
        raise ConfigError(
            f"{prefix} has no manifest that names its tokenizer: give --tokenizer-type and "
            "--tokenizer-model, as for Megatron"
        )
    load_tokenizer(**asdict(given))
    plain = TokenizerConfig(tokenizer_type=given.tokenizer_type)
    chosen = {k: v for k, v in asdict(given).items() if v != getattr(plain, k)}
    return {"tokenizer_type": given.tokenizer_type, **chosen}


def _beside(prefix: str, file: str | None) -> str | None:
    """The tokenizer's file that a manifest names, near the dataset or here."""
    if file is None:
        return None
    near = [Path(prefix).parent, Path(prefix).parent.parent, Path(".")]
    found = next((folder / file for folder in near if (folder / file).exists()), None)
    if found is None:
        raise ConfigError(
            f"{prefix} was written with {file}, which is not beside it: give --tokenizer-type and "
            "its path with --tokenizer-model"
        )
    return str(found)


def _fit_to_tokens(
    values: dict[str, Any], tokens: dict[str, int], reasons: list[str], answers: bool
) -> None:
    """Shortens batches, then intervals, then samples until no source is read too often."""
    training, mixture, data = values["training"], values["mixture"], values["data"]
    even = [1 / len(tokens)] * len(tokens)
    shares = dict(zip(tokens, mixture.get("initial_weights") or even, strict=True))
    often = max(tokens, key=lambda prefix: shares[prefix] / tokens[prefix])
    which = "the smallest source"
    if "initial_weights" in mixture:
        which = "the source that is read most at the start mixture"
    # A row with an answer is shorter than a sample of text; this counts it as a quarter.
    per_sample = data["seq_length"] // (4 if answers else 1)
    admitted = EPOCHS * tokens[often] / shares[often] / per_sample
    steps = training["train_iters"]
    while steps * training["global_batch_size"] > admitted:
        if training["global_batch_size"] > 32:
            training["global_batch_size"] //= 2
        elif mixture["inner_steps"] > 5:
            mixture["inner_steps"] //= 2
            steps = OUTER_STEPS * mixture["inner_steps"]
        elif training["global_batch_size"] > 8:
            training["global_batch_size"] //= 2
        elif not answers and data["seq_length"] > 128:
            data["seq_length"] //= 2
            per_sample = data["seq_length"]
            admitted *= 2
        else:
            reasons.append(f"{often} is so small that it is read more than {EPOCHS} times")
            break
    training["train_iters"] = steps
    training["micro_batch_size"] = math.gcd(
        training["micro_batch_size"], training["global_batch_size"]
    )
    training["lr_warmup_iters"] = min(training["lr_warmup_iters"], max(1, steps // 20))
    read = steps * training["global_batch_size"] * per_sample
    reasons += [
        f"tokens: {read:,} in {steps:,} steps of {training['global_batch_size']} samples of "
        f"{data['seq_length']}; {which}, {often}, is read about "
        f"{read * shares[often] / tokens[often]:,.2f} times",
        f"outer steps: {steps // mixture['inner_steps']}, one every {mixture['inner_steps']} steps",
    ]

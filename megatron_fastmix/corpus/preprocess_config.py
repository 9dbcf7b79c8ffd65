"""What to preprocess: the YAML of `megatron-fastmix preprocess --config`."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.config.require import (
    folder_as_in_a_shell,
    path_as_in_a_shell,
    set_paths_as_in_a_shell,
)
from megatron_fastmix.corpus.documents.record_types import KEYS, RecordType
from megatron_fastmix.corpus.indexed.own_files import Output, dataset_files
from megatron_fastmix.corpus.reading.inputs import InputFormat
from megatron_fastmix.corpus.splits import Splitter
from megatron_fastmix.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset to write."""

    prefix: str
    """PATH of PATH.bin, PATH.idx and PATH.json; with `split`, PATH_train.bin and so on."""
    input: tuple[str, ...]
    """Files, folders and globs; documents are written in this order."""
    name: str | None = None
    """Name in the manifest; default: the last part of `prefix`."""
    input_format: InputFormat = "auto"
    """Format of the inputs; `auto` goes by their names."""
    record_type: RecordType = "text"
    """What a record holds; all but `text` also write the loss mask PATH_loss_mask."""
    json_key: str = "text"
    """Key or Parquet column of the text, or for `messages` and `sharegpt` of the list; dotted for a
    nested one."""
    json_keys: tuple[str, ...] = ()
    """Keys of a record with several parts, where they are not the usual ones: question and answer;
    prompt and completion; or instruction, input and output, in this order."""
    chat_template: str | None = None
    """A model's folder, its tokenizer_config.json or a .jinja file, for all records with answers; a
    template mostly ends an answer itself, so `append_eod` is then best off."""
    split: str | None = None
    """Shares of train, valid and test (Megatron's --split, such as 969,30,1), by content; one of 0
    writes nothing."""
    split_by: str | None = None
    """Field of the records (dotted for a nested one) that makes a dataset of each of its values:
    PATH_en.bin and so on, with what is unsafe in a file's name replaced by `_`; with `split`,
    PATH_en_train.bin. The inputs are read twice."""
    quantiles: int | None = None
    """`split_by` is a score, and makes so many datasets of as many records each: PATH_q1 the
    lowest."""
    max_values: int = 100
    """How many values `split_by` may find; one more is an error."""
    held_out: bool = False
    """Whether the dataset is a target: its documents are left out of all training data."""
    skip_bad_lines: int = 0
    """How many malformed records are skipped and counted; one more is an error, from which a higher
    number goes on."""
    licence: str | None = None
    """Licence of the text, for the manifest."""
    origin: str | None = None
    """Where the text is from, for the manifest."""

    def __post_init__(self) -> None:
        folder, stem = os.path.split(self.prefix)
        if not stem:
            raise ConfigError(
                f"prefix: found {self.prefix!r}, a folder; give the PATH of PATH.bin and PATH.idx, "
                f"such as {os.path.join(self.prefix, 'web')}"
            )
        if folder:
            folder = folder_as_in_a_shell(folder, "prefix")
            object.__setattr__(self, "prefix", os.path.join(folder, stem))
        object.__setattr__(self, "input", tuple(map(path_as_in_a_shell, self.input)))
        set_paths_as_in_a_shell(self, ("chat_template",))
        if not self.input:
            raise ConfigError(f"{self.prefix}: input is empty; name a file, folder or glob")
        if self.skip_bad_lines < 0:
            raise ConfigError(
                f"{self.prefix}: skip_bad_lines: found {self.skip_bad_lines}; use 0 or more"
            )
        if self.record_type != "text" and self.input_format in {"text", "lines"}:
            raise ConfigError(
                f"{self.prefix}: record_type {self.record_type} needs JSONL or Parquet, found "
                f"input_format {self.input_format}"
            )
        if self.chat_template and self.record_type == "text":
            raise ConfigError(
                f"{self.prefix}: chat_template is for records with answers, found record_type text"
            )
        usual = KEYS[self.record_type]
        if self.json_keys and (len(usual) == 1 or len(self.json_keys) != len(usual)):
            raise ConfigError(
                f"{self.prefix}: json_keys: found {', '.join(self.json_keys)}; "
                + (
                    f"record_type {self.record_type} has one key, json_key"
                    if len(usual) == 1
                    else f"record_type {self.record_type} takes the {len(usual)} keys that stand "
                    f"for {', '.join(usual)}"
                )
            )
        if self.split and self.held_out:
            raise ConfigError(f"{self.prefix}: a held_out dataset is not split; leave one out")
        Splitter.parse(self.split)
        self._check_split_by()

    def _check_split_by(self) -> None:
        if self.split_by is not None and self.input_format in {"text", "lines"}:
            raise ConfigError(
                f"{self.prefix}: split_by {self.split_by} needs JSONL or Parquet, found "
                f"input_format {self.input_format}"
            )
        if self.quantiles is not None and (self.split_by is None or self.quantiles < 2):
            raise ConfigError(
                f"{self.prefix}: quantiles: found {self.quantiles}; use 2 or more, of the score "
                "that split_by names"
            )
        if self.max_values < 1:
            raise ConfigError(f"{self.prefix}: max_values: found {self.max_values}; use 1 or more")

    @property
    def outputs(self) -> list[tuple[str, str, bool]]:
        """(prefix, name, held out) of each split in order."""
        name = self.name or Path(self.prefix).name
        if self.split is None:
            return [(self.prefix, name, self.held_out)]
        return [
            (f"{self.prefix}_{split}", f"{name}_{split}", split != "train")
            for split in Splitter.parse(self.split).names
        ]

    @property
    def files(self) -> list[Output]:
        """Every file that writing the dataset makes."""
        masked, of = self.record_type != "text", f"dataset {self.prefix}"
        names = [f"{self.prefix}.journal.json"] if self.split or self.split_by else []
        names += [f"{self.prefix}.split_by.json"] if self.split_by else []
        for prefix, _, held_out in self.outputs:
            names += dataset_files(prefix, masked=masked, held_out=held_out)
        return [Output(path=name, of=of) for name in names]


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Datasets that one tokenizer writes."""

    tokenizer: TokenizerConfig
    datasets: tuple[DatasetConfig, ...]
    append_eod: bool = True
    """Whether an end-of-document token closes each document (Megatron's --append-eod)."""
    workers: int | None = None
    """Worker processes; default: one per core that this process may use."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ConfigError("datasets: is empty; name at least one dataset to write")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers: found {self.workers}; use at least 1")
        prefixes = Counter(
            os.path.abspath(prefix) for dataset in self.datasets for prefix, _, _ in dataset.outputs
        )
        twice = [prefix for prefix, count in prefixes.items() if count > 1]
        if twice:
            raise ConfigError(f"datasets: {', '.join(sorted(twice))} is written more than once")
        splits = {Splitter.parse(dataset.split) for dataset in self.datasets if dataset.split}
        if len(splits) > 1:
            # Equal shares put equal documents of different datasets into equal splits.
            raise ConfigError(
                "split: the datasets have different shares; use the same for all of them, or a "
                "document could be held out of one and in the training part of another"
            )

    @property
    def in_order(self) -> list[DatasetConfig]:
        """Held-out datasets first, then those with held-out splits, so that training sees all."""
        return sorted(self.datasets, key=lambda d: (not d.held_out, d.split is None))

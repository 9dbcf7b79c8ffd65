"""From text to indexed datasets: many sources, every core, flat memory, resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from megatron_fastmix.corpus.dataset_output import read_digests
from megatron_fastmix.corpus.dataset_work import DatasetWork, Report
from megatron_fastmix.corpus.indexed.earlier_files import remove_earlier_parts
from megatron_fastmix.corpus.indexed.manifest import Manifest, TokenizerRecord, input_records
from megatron_fastmix.corpus.indexed.own_files import check_outputs
from megatron_fastmix.corpus.known_partition import keep_partition
from megatron_fastmix.corpus.preprocess_config import PreprocessConfig
from megatron_fastmix.corpus.reading.inputs import expand_inputs
from megatron_fastmix.corpus.split_by import PartitionedDataset, partitioned
from megatron_fastmix.corpus.tokenizers.registry import (
    load_tokenizer,
    tokenizer_file,
    tokenizer_files,
)
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.processes import available_cores
from megatron_fastmix.storage import storage_errors


def preprocess(
    config: PreprocessConfig, report: Report = print, *, also_read: Sequence[str] = ()
) -> list[Manifest]:
    """Writes every dataset of `config` that is not there already; returns all manifests.

    Held-out datasets come first, since training data leaves their documents out. A dataset is
    there already if its manifest has the same recipe (inputs by path, size and time of change;
    tokenizer; options; held-out documents) and no more bad lines than are allowed, and its files
    have the recorded sizes. Interrupted work is continued. `also_read` are files that must not be
    overwritten either, such as the one that `config` is from. Raises `ConfigError`, `DataError` and
    `StorageError`; what was finished before stays.
    """
    # All inputs are looked at before any work.
    files = {d.prefix: expand_inputs(d.input, d.input_format) for d in config.datasets}
    _check_names(config, files)
    workers = config.workers or available_cores()
    # Of a dataset that is split, as they were before they were read for its values.
    inputs = {d.prefix: input_records(files[d.prefix]) for d in config.datasets if d.split_by}
    datasets = [partitioned(d, inputs.get(d.prefix, ()), workers) for d in config.datasets]
    config = dataclasses.replace(config, datasets=tuple(datasets))
    _check_outputs(config, files, also_read)
    tokenizer = load_tokenizer(**vars(config.tokenizer))
    model = config.tokenizer.tokenizer_model
    record = TokenizerRecord(
        tokenizer_type=tokenizer.tokenizer_type,
        tokenizer_model=tokenizer_file(tokenizer.tokenizer_type, model).name if model else None,
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
    )
    for note in (*(tokenizer.notes if config.append_eod else ()), *tokenizer.encoding_notes):
        report(note)
    inputs = {prefix: input_records(paths) for prefix, paths in files.items()} | inputs
    excluded: set[bytes] = set()
    manifests: list[Manifest] = []
    for dataset in config.in_order:
        work = DatasetWork(dataset, config, tokenizer, record, inputs[dataset.prefix], excluded)
        with storage_errors(
            f"{dataset.prefix}: cannot write", "run again, it continues where it stopped"
        ):
            found = work.finished(report) or work.run_alone(report)
            manifests += found.values()
            if isinstance(dataset, PartitionedDataset):
                keep_partition(dataset, inputs[dataset.prefix], dataset.partition)
            written = [prefix for d in config.datasets for prefix, _, _ in d.outputs]
            remove_earlier_parts(dataset.prefix, written, inputs[dataset.prefix], report)
            for prefix, manifest in found.items():
                if manifest.held_out:
                    excluded |= read_digests(prefix)
    return manifests


def _check_names(config: PreprocessConfig, files: dict[str, list[str]]) -> None:
    """Raises `ConfigError` for the name of a file that a manifest cannot hold."""
    model = config.tokenizer.tokenizer_model
    for path in (*files, *(path for paths in files.values() for path in paths), model or ""):
        try:
            path.encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigError(
                f"{path!a}: the name is no UTF-8, so that no manifest can tell it; rename it"
            ) from None


def _check_outputs(
    config: PreprocessConfig, files: dict[str, list[str]], also_read: Sequence[str]
) -> None:
    """Raises `ConfigError` where an output of any dataset is an input of any."""
    model = config.tokenizer.tokenizer_model
    read: dict[str, Sequence[str]] = {f"dataset {prefix}": paths for prefix, paths in files.items()}
    read["the command"] = also_read
    more = (config.tokenizer.vocab_file, config.tokenizer.merge_file)
    read["the tokenizer"] = [*(tokenizer_files(model) if model else ()), *filter(None, more)]
    for dataset in config.datasets:
        if dataset.chat_template:
            read[f"the chat template of {dataset.prefix}"] = tokenizer_files(dataset.chat_template)
    check_outputs([output for dataset in config.datasets for output in dataset.files], read)

"""From documents to indexed datasets: many sources, every core, flat memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.encoding import EncodedChunk, Encoder
from megatron_fastmix.corpus.manifest import (
    InputRecord,
    Manifest,
    TokenizerRecord,
    input_records,
    manifest_path,
    read_manifest,
    write_manifest,
)
from megatron_fastmix.corpus.readers import LineRange, iter_chunks
from megatron_fastmix.corpus.tokenizers import Tokenizer, load_tokenizer
from megatron_fastmix.corpus.writer import IndexedDatasetWriter, token_dtype
from megatron_fastmix.errors import ConfigError, DataError

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset to write."""

    prefix: str
    """PATH of PATH.bin, PATH.idx and PATH.json."""
    input: tuple[str, ...]
    """JSONL files, in the order in which their documents are written."""
    name: str | None = None
    """Name in the manifest; default: the last part of `prefix`."""
    json_key: str = "text"
    """Key of the text; dotted for a nested one."""
    licence: str | None = None
    """Licence of the text, for the manifest."""
    origin: str | None = None
    """Where the text is from, for the manifest."""


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
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers: found {self.workers}; use at least 1")
        prefixes = [os.path.abspath(dataset.prefix) for dataset in self.datasets]
        twice = {prefix for prefix in prefixes if prefixes.count(prefix) > 1}
        if twice:
            raise ConfigError(f"datasets: {', '.join(sorted(twice))} is written more than once")
        for dataset in self.datasets:
            if not dataset.input:
                raise ConfigError(f"{dataset.prefix}: input is empty; name at least one file")


def preprocess(config: PreprocessConfig, report: Report = print) -> list[Manifest]:
    """Writes every dataset of `config` that is not there already; returns their manifests.

    A dataset is there already if its manifest names the same inputs (path, size, time of change),
    tokenizer and options, and the files have the recorded sizes. Raises `ConfigError` and
    `DataError`; datasets finished before the error stay.
    """
    tokenizer = load_tokenizer(config.tokenizer.tokenizer_type, config.tokenizer.tokenizer_model)
    model = config.tokenizer.tokenizer_model
    record = TokenizerRecord(
        tokenizer_type=tokenizer.tokenizer_type,
        tokenizer_model=Path(model).name if model else None,
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
    )
    inputs = {d.prefix: input_records(d.input) for d in config.datasets}  # all errors first
    workers = config.workers or len(os.sched_getaffinity(0))
    manifests = []
    with WorkerPool(workers) as pool:
        for dataset in config.datasets:
            done = _finished(dataset, config.append_eod, record, inputs[dataset.prefix])
            if done is not None:
                report(f"{dataset.prefix}: up to date, {done.tokens:,} tokens")
                manifests.append(done)
                continue
            start = time.perf_counter()
            manifest = _write_dataset(
                dataset, config.append_eod, tokenizer, record, inputs[dataset.prefix], pool
            )
            seconds = time.perf_counter() - start
            report(
                f"{dataset.prefix}: {manifest.documents:,} documents, {manifest.tokens:,} tokens, "
                f"{manifest.text_bytes / 1e6 / seconds:.1f} MB/s, "
                f"{manifest.tokens / seconds:,.0f} tokens/s"
            )
            manifests.append(manifest)
    return manifests


class WorkerPool:
    """Worker processes that encode chunks; results come in order, few are in flight at a time."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def encode(self, encoder: Encoder, chunks: Iterable[LineRange]) -> Iterator[EncodedChunk]:
        """`encoder(chunk)` for each chunk, in order."""
        if self._workers == 1:
            yield from map(encoder, chunks)
            return
        if self._executor is None:
            # The command has no threads yet, so forking is safe and starts at once.
            self._executor = ProcessPoolExecutor(
                self._workers, mp_context=multiprocessing.get_context("fork")
            )
        window: deque[Future[EncodedChunk]] = deque()
        try:
            for chunk in chunks:
                window.append(self._executor.submit(encoder, chunk))
                if len(window) > 2 * self._workers:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process died, most likely killed for memory; use fewer --workers"
            ) from None


def _write_dataset(
    dataset: DatasetConfig,
    append_eod: bool,
    tokenizer: Tokenizer,
    record: TokenizerRecord,
    inputs: tuple[InputRecord, ...],
    pool: WorkerPool,
) -> Manifest:
    # A manifest must never describe other files than those beside it.
    manifest_path(dataset.prefix).unlink(missing_ok=True)
    dtype = token_dtype(tokenizer.vocab_size)
    encoder = Encoder(tokenizer, dataset.json_key, append_eod)
    text_bytes = empty = 0
    with IndexedDatasetWriter(dataset.prefix, dtype) as writer:
        for path in dataset.input:
            lines = 0
            for encoded in pool.encode(encoder, iter_chunks(path)):
                for bad in encoded.bad_lines:
                    raise DataError(
                        f"{path}:{lines + bad.line}: {bad.reason}; correct or remove the line"
                    )
                lines += encoded.lines
                text_bytes += encoded.text_bytes
                empty += encoded.empty_documents
                writer.write(encoded.tokens, encoded.lengths, encoded.documents)
        if not writer.tokens:
            raise DataError(f"{dataset.prefix}: the inputs hold no text; nothing was written")
        bin_sha256, idx_sha256 = writer.finish()
    manifest = Manifest(
        name=dataset.name or Path(dataset.prefix).name,
        documents=writer.documents,
        sequences=writer.sequences,
        tokens=writer.tokens,
        text_bytes=text_bytes,
        empty_documents=empty,
        bad_lines=0,
        bin_sha256=bin_sha256,
        idx_sha256=idx_sha256,
        append_eod=append_eod,
        json_key=dataset.json_key,
        tokenizer=record,
        inputs=inputs,
        licence=dataset.licence,
        origin=dataset.origin,
    )
    write_manifest(dataset.prefix, manifest)
    return manifest


def _finished(
    dataset: DatasetConfig,
    append_eod: bool,
    tokenizer: TokenizerRecord,
    inputs: tuple[InputRecord, ...],
) -> Manifest | None:
    try:
        manifest = read_manifest(dataset.prefix)
    except DataError:
        return None  # damaged or of another version: written anew
    if manifest is None:
        return None
    same = (
        manifest.inputs == inputs
        and manifest.tokenizer == tokenizer
        and manifest.append_eod == append_eod
        and manifest.json_key == dataset.json_key
        and manifest.name == (dataset.name or Path(dataset.prefix).name)
        and (manifest.licence, manifest.origin) == (dataset.licence, dataset.origin)
    )
    size = manifest.tokens * token_dtype(tokenizer.vocab_size)().itemsize
    data, index = Path(dataset.prefix + ".bin"), Path(dataset.prefix + ".idx")
    whole = data.is_file() and data.stat().st_size == size and index.is_file()
    return manifest if same and whole else None

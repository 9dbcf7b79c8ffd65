"""Measuring preprocessing beside the flow of Megatron-LM's tools/preprocess_data.py.

The peer's flow is written anew here after what that script does: `multiprocessing.Pool.imap` over
the lines of a file, 32 at a time; each worker parses and encodes one document and returns lists of
ids; the parent hands each document to Megatron-core's `IndexedDatasetBuilder.add_document`. Both
flows use the same tokenizer object, as many workers, and the same JSONL file; imports are not
timed, starting the workers is. The datasets of both are compared byte by byte.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import multiprocessing
import resource
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.sentencepiece_training import SentencePieceConfig, train_sentencepiece
from megatron_fastmix.corpus.tokenizers.registry import Tokenizer, load_tokenizer
from megatron_fastmix.errors import DataError, FastMixError
from megatron_fastmix.lab.measurements import Measurement
from megatron_fastmix.processes import available_cores

REACH_SPEEDUP = 3.0
"""Times the peer's tokens/s."""
REACH_MEMORY_GROWTH = 1.1
"""Peak memory at the larger size over that at the smaller: flat but for noise."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured."""

    megabytes: tuple[float, ...] = (10.0, 200.0)
    """Sizes of the JSONL files, 1e6 bytes."""
    workers: int = field(default_factory=available_cores)
    repetitions: int = 3
    """Runs of each; the median counts."""
    tokenizer_type: str | None = None
    """None: BPE with 32,000 pieces, trained here."""
    tokenizer_model: str | None = None
    folder: str | None = None
    """Keeps text and tokenizer; None: a temporary folder."""


def measure(scratch: Path, settings: Settings, report: Callable[[str], None]) -> list[Measurement]:
    """Measures both flows in `scratch`, or in the folder of `settings`. Raises as `compare`."""
    tokenizer = settings.tokenizer_type and TokenizerConfig(
        tokenizer_type=settings.tokenizer_type, tokenizer_model=settings.tokenizer_model
    )
    comparisons = compare(
        settings.megabytes,
        folder=Path(settings.folder) if settings.folder else scratch,
        tokenizer=tokenizer or None,
        workers=settings.workers,
        repetitions=settings.repetitions,
        report=report,
    )
    return measurements(comparisons)


@dataclass(frozen=True, kw_only=True)
class FlowRun:
    """One run of one flow."""

    seconds: float
    tokens: int
    peak_bytes: int
    """Largest resident set of the parent plus that of the largest worker."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Both flows on one file, medians over the repetitions."""

    megabytes: float
    """Size of the JSONL file, 1e6 bytes."""
    ours: FlowRun
    peer: FlowRun

    @property
    def speedup(self) -> float:
        return self.ours.tokens_per_second / self.peer.tokens_per_second


def compare(
    megabytes: Sequence[float],
    *,
    folder: Path,
    tokenizer: TokenizerConfig | None = None,
    workers: int = 2,
    repetitions: int = 3,
    report: Callable[[str], None] = print,
) -> list[Comparison]:
    """Measures both flows at each size, in turns, each run in a process of its own.

    Text is the Python and C++ of what is installed; without `tokenizer`, BPE with 32,000 pieces is
    trained on it. Raises `DataError` where the two flows write different bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"text_{size:g}MB.jsonl" for size in megabytes]
    for path, size in zip(files, megabytes, strict=True):
        if not path.exists():
            write_text(path, int(size * 1e6))
    if tokenizer is None:
        model = folder / "bpe_32000.model"
        train_sentencepiece([files[-1]], model, SentencePieceConfig(vocab_size=32_000))
        tokenizer = TokenizerConfig(
            tokenizer_type="SentencePieceTokenizer", tokenizer_model=str(model)
        )
    results = []
    for path in files:
        runs: dict[str, list[FlowRun]] = {"peer": [], "ours": []}
        for repetition in range(repetitions):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                for name, flow in (("peer", run_peer), ("ours", run_ours)):
                    measured = _in_new_process(
                        flow, str(path), f"{scratch}/{name}", tokenizer, workers
                    )
                    runs[name].append(measured)
                    report(
                        f"{path.name}, run {repetition + 1}, {name}: "
                        f"{measured.tokens_per_second:,.0f} tokens/s, "
                        f"{measured.peak_bytes / 1e6:,.0f} MB"
                    )
                _check_equal(scratch)
        size = path.stat().st_size / 1e6
        results.append(
            Comparison(megabytes=size, ours=_median(runs["ours"]), peer=_median(runs["peer"]))
        )
    return results


def measurements(comparisons: Sequence[Comparison]) -> list[Measurement]:
    """Figures with the value that each has to reach."""
    found = []
    for comparison in comparisons:
        at = f"{comparison.megabytes:.3g} MB"
        found.append(
            Measurement(
                figure=f"preprocessing speed / the peer's, {at}",
                value=comparison.speedup,
                reach=REACH_SPEEDUP,
                better="higher",
                unit="ratio",
            )
        )
        for name, run in (("ours", comparison.ours), ("the peer", comparison.peer)):
            found.append(
                Measurement(
                    figure=f"preprocessing speed of {name}, {at}",
                    value=run.tokens_per_second,
                    better="higher",
                    unit="tokens/s",
                )
            )
    if len(comparisons) > 1:
        first, last = comparisons[0], comparisons[-1]
        found.append(
            Measurement(
                figure=f"peak memory at {last.megabytes:.3g} MB / at {first.megabytes:.3g} MB",
                value=last.ours.peak_bytes / first.ours.peak_bytes,
                reach=REACH_MEMORY_GROWTH,
                unit="ratio",
            )
        )
    return found


def write_text(path: Path, size: int) -> None:
    """A JSONL file of about `size` bytes of the Python and C++ files that are installed, which is
    there whole or not at all.

    Distinct files in the order of their hash. Raises `DataError` where there is too little.
    """
    written = 0
    part = path.with_suffix(".part")  # of a run that was stopped, or of too little text
    with part.open("wb") as file:
        for text in _installed_texts():
            line = json.dumps({"text": text}).encode() + b"\n"
            file.write(line)
            written += len(line)
            if written >= size:
                break
    if written < size:
        part.unlink()
        raise DataError(
            f"only {written / 1e6:.0f} MB of text are installed, {size / 1e6:.0f} MB are needed; "
            "choose smaller sizes"
        )
    part.replace(path)


def _installed_texts() -> Iterator[str]:
    paths = sysconfig.get_paths()
    files = {
        hashlib.sha256(str(path.relative_to(root)).encode()).digest(): path
        for root in (Path(paths["stdlib"]), Path(paths["purelib"]))
        for pattern in ("*.py", "*.pyi", "*.h", "*.hpp", "*.cuh")
        for path in root.rglob(pattern)
    }
    seen = set()
    for _, path in sorted(files.items()):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        digest = hashlib.sha256(text.encode()).digest()
        if text and digest not in seen:
            seen.add(digest)
            yield text


def run_ours(source: str, prefix: str, tokenizer: TokenizerConfig, workers: int) -> FlowRun:
    """This package's preprocessing, all of it: checksums and manifest too."""
    dataset = DatasetConfig(prefix=prefix, input=(source,))
    config = PreprocessConfig(tokenizer=tokenizer, datasets=(dataset,), workers=workers)
    start = time.perf_counter()
    (manifest,) = preprocess(config, lambda line: None)
    seconds = time.perf_counter() - start
    return FlowRun(seconds=seconds, tokens=manifest.tokens, peak_bytes=_peak_bytes())


class _PeerEncoder:
    """One document at a time, in a worker process."""

    tokenizer: Tokenizer

    def __init__(self, config: TokenizerConfig) -> None:
        self.config = config

    def start(self) -> None:
        _PeerEncoder.tokenizer = load_tokenizer(**vars(self.config))

    def encode(self, line: str) -> tuple[list[int], list[int]]:
        ids = _PeerEncoder.tokenizer.tokenize(json.loads(line)["text"])
        lengths = [len(ids)] if ids else []
        if ids:
            ids.append(_PeerEncoder.tokenizer.eod)
            lengths[-1] += 1
        return ids, lengths


def run_peer(source: str, prefix: str, tokenizer: TokenizerConfig, workers: int) -> FlowRun:
    """The flow of Megatron-LM's preprocess_data.py."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    vocab_size = load_tokenizer(**vars(tokenizer)).vocab_size
    encoder = _PeerEncoder(tokenizer)
    tokens = 0
    start = time.perf_counter()
    with (
        open(source, encoding="utf-8") as lines,
        multiprocessing.get_context("fork").Pool(workers, encoder.start) as pool,
    ):
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
        for ids, lengths in pool.imap(encoder.encode, lines, 32):
            tokens += len(ids)
            builder.add_document(ids, lengths)
        builder.finalize(f"{prefix}.idx")
        seconds = time.perf_counter() - start
        pool.close()
        pool.join()
    return FlowRun(seconds=seconds, tokens=tokens, peak_bytes=_peak_bytes())


def _in_new_process(flow: Callable[..., FlowRun], *arguments: Any) -> FlowRun:
    """Runs a flow where nothing was loaded or cached before, so that its memory is its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, flow, arguments))
    process.start()
    sender.close()
    try:
        measured: FlowRun | FastMixError = receiver.recv()
    except EOFError:
        process.join()
        raise DataError(f"the measured process ended with exit code {process.exitcode}") from None
    process.join()
    if isinstance(measured, FastMixError):
        raise measured
    return measured


def _send(sender: Any, flow: Callable[..., FlowRun], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send(flow(*arguments))
    except FastMixError as error:
        sender.send(error)


def _peak_bytes() -> int:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024


def _check_equal(folder: str) -> None:
    for end in ("bin", "idx"):
        if not filecmp.cmp(f"{folder}/ours.{end}", f"{folder}/peer.{end}", shallow=False):
            raise DataError(f"the two flows wrote different .{end} files")


def _median(runs: Sequence[FlowRun]) -> FlowRun:
    return FlowRun(
        seconds=statistics.median(run.seconds for run in runs),
        tokens=runs[0].tokens,
        peak_bytes=int(statistics.median(run.peak_bytes for run in runs)),
    )

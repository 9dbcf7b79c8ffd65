"""Training a SentencePiece model on a weighted sample of sources."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.corpus.documents.records import read_documents
from megatron_fastmix.corpus.indexed.manifest import input_records
from megatron_fastmix.corpus.indexed.own_files import Output, check_outputs, is_ours
from megatron_fastmix.corpus.reading.inputs import expand_inputs
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.text_files import read_bytes, read_json

SPECIAL_PIECES = 4
BYTE_PIECES = 256
MAX_SENTENCE_CHARACTERS = 1000
"""Longer lines are cut before training, since the trainer would drop them whole."""
# Line breaks, the trainer's own separator (tab) and NUL, with which it drops a line; all three are
# encoded as bytes.
_UNTRAINABLE = re.compile(r"[\n\t\0]+")


@dataclass(frozen=True, kw_only=True)
class SentencePieceConfig:
    """What a trained model depends on, besides its text."""

    vocab_size: int
    """Pieces including the 4 special ones and 256 bytes."""
    model_type: Literal["unigram", "bpe"] = "bpe"
    """BPE is the default because its encoding is exact however the text is cut at spaces, which
    preprocessing makes use of; unigram's depends on float rounding over the whole document."""
    sample_bytes: int = 10_000_000
    """UTF-8 bytes of text to train on, over all sources."""
    character_coverage: float = 0.9995
    """Share of characters that become pieces; the rest falls back to bytes."""
    num_threads: int = 2
    """Does not change the result."""

    def __post_init__(self) -> None:
        least = SPECIAL_PIECES + BYTE_PIECES + 1
        if self.vocab_size < least:
            raise ConfigError(
                f"vocab_size: found {self.vocab_size}; use at least {least}: "
                f"{SPECIAL_PIECES} special pieces and {BYTE_PIECES} bytes come first"
            )
        if not 0 < self.character_coverage <= 1:
            raise ConfigError(
                f"character_coverage: found {self.character_coverage}; use a fraction in (0, 1]"
            )
        if self.sample_bytes < 1:
            raise ConfigError(f"sample_bytes: found {self.sample_bytes}; use at least 1")


def train_sentencepiece(
    inputs: Sequence[str | Path],
    output: str | Path,
    config: SentencePieceConfig,
    *,
    weights: Sequence[float] | None = None,
    json_key: str = "text",
) -> bool:
    """Trains a model on `inputs` and writes it to `output`; False where it is there already.

    Source i gives `weights[i] / Σ weights` of `sample_bytes` (default: equal weights), or all its
    text where it has less; its documents are taken in order. Text is kept as it is: no Unicode
    normalisation, spaces and line breaks preserved, so that code survives a round trip. Same
    inputs and settings give the same bytes. `OUTPUT.json` records what the model was trained on;
    a model whose record fits is kept.

    Raises `ConfigError` for weights that do not fit and for an `output` that is there and was not
    written so, `DataError` for unreadable or too little
    text.
    """
    import sentencepiece

    shares = [1.0] * len(inputs) if weights is None else list(weights)
    fits = len(shares) == len(inputs) > 0 and min(shares) >= 0 and 0 < sum(shares) < math.inf
    if not fits:
        raise ConfigError(
            f"weights: found {shares} for {len(inputs)} inputs; give one finite weight of 0 or "
            "more for each input, not all 0"
        )
    files = [file for name in inputs for file in expand_inputs([str(name)])]
    written = (str(output), str(_record_path(Path(output))))
    check_outputs(
        [Output(path=path, of="the training") for path in written],
        {"the training": files},
    )
    if _is_anothers(Path(output)):
        raise ConfigError(
            f"{output}: is there, and train-tokenizer did not write it (no {written[1]} beside it "
            "tells so); the training would write over it: move it away, or choose another file"
        )
    record: dict[str, object] = {
        "settings": dataclasses.asdict(config),
        "weights": [share / sum(shares) for share in shares],
        "json_key": json_key,
        "inputs": [dataclasses.asdict(found) for found in input_records(files)],
        "sentencepiece": sentencepiece.__version__,
    }
    if _is_trained(Path(output), record):
        return False
    limits = [int(config.sample_bytes * share / sum(shares)) for share in shares]
    model = io.BytesIO()
    failed: list[BaseException] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_keeping(_sentences(inputs, limits, json_key), failed),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.model_type,
            character_coverage=config.character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            # The sample is already chosen; the trainer must not draw again.
            input_sentence_size=0,
            shuffle_input_sentence=False,
            max_sentence_length=4 * MAX_SENTENCE_CHARACTERS,
            num_threads=config.num_threads,
            minloglevel=2,
            # Explicit, so that every model of ours has all four, at the same places.
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
        )
    except (RuntimeError, SystemError) as error:  # the latter of 0.2.0, where the reading fails
        if failed:
            raise failed[0] from None
        raise DataError(
            f"SentencePiece cannot train {config.vocab_size} pieces on this text: {error}; use a "
            "smaller vocabulary or more text"
        ) from None
    content = model.getvalue()
    record["sha256"] = hashlib.sha256(content).hexdigest()
    # First, so that a model whose writing was cut off is known as ours.
    write_atomically(_record_path(Path(output)), json.dumps(record, indent=2) + "\n")
    write_atomically(output, content)
    return True


def _record_path(output: Path) -> Path:
    return output.with_name(output.name + ".json")


def _is_anothers(output: Path) -> bool:
    return output.is_file() and output.stat().st_size > 0 and not is_ours(str(output))


def _is_trained(output: Path, record: dict[str, object]) -> bool:
    try:
        found = read_json(_record_path(output), "the record of the training")
        content = read_bytes(output, "the tokenizer")
    except DataError:
        return False  # trained anew
    return bool(found == {**record, "sha256": hashlib.sha256(content).hexdigest()})


def _keeping(sentences: Iterator[str], failed: list[BaseException]) -> Iterator[str]:
    """`sentences`, and in `failed` what they raise, of which SentencePiece makes an error of its
    own: a bad line, or Ctrl-C."""
    try:
        yield from sentences
    except (Exception, KeyboardInterrupt) as error:
        failed.append(error)
        raise


def _sentences(inputs: Sequence[str | Path], limits: Sequence[int], json_key: str) -> Iterator[str]:
    """Lines of the sampled documents, each line with its leading spaces."""
    for path, limit in zip(inputs, limits, strict=True):
        taken = 0
        for document in read_documents(path, json_key):
            if taken >= limit:
                break
            for line in _UNTRAINABLE.split(document):
                for start in range(0, len(line), MAX_SENTENCE_CHARACTERS):
                    yield line[start : start + MAX_SENTENCE_CHARACTERS]
            taken += len(document.encode("utf-8", errors="replace"))

"""The work of one worker process: a chunk of records becomes token ids, split by split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_fastmix.corpus.documents.document import Document, FieldValue
from megatron_fastmix.corpus.documents.records import RecordParser
from megatron_fastmix.corpus.indexed.writer import token_dtype
from megatron_fastmix.corpus.reading.readers import Chunk
from megatron_fastmix.corpus.splits import Splitter, content_digest
from megatron_fastmix.corpus.tokenizers.tokenizer_interface import LocatedTokens, Tokenizer
from megatron_fastmix.errors import ConfigError


@dataclass(frozen=True)
class EncodedDocuments:
    """Documents ready to be written: see `IndexedDatasetWriter.write`."""

    tokens: bytes
    lengths: np.ndarray
    documents: np.ndarray
    loss_mask: bytes | None
    """One byte per token: 1 where the token counts as a label; None for pre-training."""
    text_bytes: int
    empty_documents: int
    digests: tuple[bytes, ...]
    """Of the documents, where the dataset is held out; else empty."""


@dataclass(frozen=True)
class BadRecord:
    """A record that is no document; `number` counts from 1 in its chunk."""

    number: int
    reason: str


@dataclass(frozen=True)
class EncodedChunk:
    """What became of one chunk."""

    path: str
    records: int
    input_bytes: int
    splits: tuple[EncodedDocuments | None, ...]
    """None for a split without documents."""
    bad_records: tuple[BadRecord, ...]
    duplicates: tuple[int, ...]
    """By split, documents left out because a held-out dataset has them."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Callable from chunk to `EncodedChunk`.

    Documents are encoded as Megatron's preprocess_data.py does it: a text is one sequence, a list
    of texts gives one sequence each; empty sequences are left out, empty documents stay as
    documents of no sequences, and the end-of-document id joins the last sequence. A document with
    answers is one text, encoded as a whole; the end-of-document id is learned if its last token is.
    """

    tokenizer: Tokenizer
    parser: RecordParser
    append_eod: bool
    splitter: Splitter
    partition: Callable[[FieldValue], int] | None = None
    """Which value's dataset a record goes to by its field, each with all the splits."""
    held_out: tuple[bool, ...]
    """By split, whether its documents are held out from training."""
    excluded: frozenset[bytes]
    """Digests of held-out documents, which training splits leave out."""

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        records = chunk.records()
        splits, count = len(self.splitter.edges), len(self.held_out)
        groups: list[list[Document]] = [[] for _ in range(count)]
        numbers: list[list[int]] = [[] for _ in range(count)]
        digests: list[list[bytes]] = [[] for _ in range(count)]
        duplicates = [0] * count
        bad: list[BadRecord] = []
        needs_digest = splits > 1 or any(self.held_out) or bool(self.excluded)
        for number, record in enumerate(records, start=1):
            records[number - 1] = b""  # beside its text it would take memory twice
            try:
                document = self.parser(record, chunk.record_format)
                first = self._first_split(document)
            except ValueError as error:
                bad.append(BadRecord(number, str(error)))
                continue
            if document is None:
                continue
            split = first
            if needs_digest:
                digest = content_digest(document)
                split = first + self.splitter(digest)
                if self.held_out[split]:
                    digests[split].append(digest)
                elif digest in self.excluded:
                    duplicates[split] += 1
                    continue
            groups[split].append(document)
            numbers[split].append(number)
        encoded = tuple(
            self._encode_known(*group, bad) if group[0] else None
            for group in zip(groups, digests, numbers, strict=True)
        )
        return EncodedChunk(
            path=chunk.path,
            records=len(records),
            input_bytes=chunk.input_bytes,
            splits=encoded,
            bad_records=tuple(sorted(bad, key=lambda each: each.number)),
            duplicates=tuple(duplicates),
        )

    def _first_split(self, document: Document | None) -> int:
        """Place of the first split of the document's part. Raises `ValueError` for a value that the
        parts do not have."""
        if self.partition is None or document is None:
            return 0
        assert document.field is not None
        return self.partition(document.field) * len(self.splitter.edges)

    def _encode_known(
        self,
        documents: Sequence[Document],
        digests: Sequence[bytes],
        numbers: Sequence[int],
        bad: list[BadRecord],
    ) -> EncodedDocuments | None:
        """The documents that the tokenizer takes; the records of others are added to `bad`."""
        try:
            return self._encode(documents, tuple(digests))
        except BaseException as error:
            if not _is_refusal(error):
                raise
            refused = error
        taken = []
        for place, (document, number) in enumerate(zip(documents, numbers, strict=True)):
            try:
                self._encode([document], ())
                taken.append(place)
            except BaseException as error:
                if not _is_refusal(error):
                    raise
                bad.append(BadRecord(number, f"the tokenizer refuses the text: {error}"))
        if len(taken) == len(documents):
            raise refused  # for another reason than one of the texts
        if not taken:
            return None
        left = tuple(digests[place] for place in taken) if digests else ()
        return self._encode([documents[place] for place in taken], left)

    def _encode(
        self, documents: Sequence[Document], digests: tuple[bytes, ...]
    ) -> EncodedDocuments:
        as_texts = self.parser.record_type == "text"
        ids, lengths, sequences, mask = (self._texts if as_texts else self._answers)(documents)
        texts = (part for document in documents for part in document.parts)
        return EncodedDocuments(
            tokens=ids.astype(token_dtype(self.tokenizer.vocab_size), copy=False).tobytes(),
            lengths=lengths.astype(np.int32),
            documents=sequences,
            loss_mask=mask,
            text_bytes=sum(len(t) if t.isascii() else len(t.encode("utf-8")) for t in texts),
            empty_documents=int(np.count_nonzero(sequences == 0)),
            digests=digests,
        )

    def _texts(self, documents: Sequence[Document]) -> _Encoded:
        ids, lengths = self.tokenizer.encode_flat([p for d in documents for p in d.parts])
        sizes = np.fromiter((len(d.parts) for d in documents), np.int64, len(documents))
        owner = np.repeat(np.arange(len(documents)), sizes)
        filled = np.flatnonzero(lengths)
        if self.append_eod:
            # The last part with tokens of each document that has any.
            last = filled[np.flatnonzero(np.diff(owner[filled], append=-1))]
            ids = np.insert(ids, np.cumsum(lengths)[last], self.tokenizer.eod)
            lengths = lengths.copy()
            lengths[last] += 1
        sequences = np.bincount(owner[filled], minlength=len(documents))
        return ids, lengths[filled], sequences, None

    def _answers(self, documents: Sequence[Document]) -> _Encoded:
        tokens = self.tokenizer.encode_located(
            ["".join(d.parts) for d in documents], [d.controls for d in documents]
        )
        ids, lengths, mask = tokens.ids, tokens.lengths, answer_mask(documents, tokens)
        if self.append_eod:
            filled = np.flatnonzero(lengths)
            ends = np.cumsum(lengths)[filled]
            ids = np.insert(ids, ends, self.tokenizer.eod)
            mask = np.insert(mask, ends, mask[ends - 1])
            lengths = lengths.copy()
            lengths[filled] += 1
        sequences = (lengths > 0).astype(np.int64)
        return ids, lengths[lengths > 0], sequences, mask.tobytes()


def _is_refusal(error: BaseException) -> bool:
    """Whether a tokenizer may have raised it for its text: packages raise any `Exception`, and
    those in Rust a panic, which is none."""
    if isinstance(error, MemoryError | OSError | ConfigError):
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


_Encoded = tuple[np.ndarray, np.ndarray, np.ndarray, bytes | None]
"""Ids, tokens of each sequence, sequences of each document, loss mask."""


def answer_mask(documents: Sequence[Document], tokens: LocatedTokens) -> np.ndarray:
    """1 for each of the documents' tokens that counts in the loss, (tokens,) uint8.

    A token counts if any of its characters is of an answer, as in `transformers`: one that holds
    the end of the prompt and the beginning of the answer is learned, or the model would never
    learn how the answer begins. A token without characters of its own goes with the next one.
    """
    sizes = np.array([len(part) for d in documents for part in d.parts], np.int64)
    flags = np.array([flag for d in documents for flag in d.in_loss], np.int64)
    ends = np.cumsum(sizes)  # of all parts, as if the documents were one text
    counted = np.concatenate([[0], np.cumsum(flags * (sizes > 0))])
    document_sizes = np.array([sum(map(len, d.parts)) for d in documents], np.int64)
    first = np.cumsum(document_sizes) - document_sizes
    origin = np.repeat(first, tokens.lengths)
    limit = np.repeat(document_sizes, tokens.lengths)
    starts = origin + np.minimum(tokens.starts, limit - 1)
    stops = np.maximum(origin + np.minimum(tokens.stops, limit), starts + 1)
    low = np.searchsorted(ends, starts, side="right")
    high = np.searchsorted(ends, stops - 1, side="right")
    return (counted[high + 1] > counted[low]).astype(np.uint8)

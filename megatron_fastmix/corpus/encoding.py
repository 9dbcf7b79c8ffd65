"""The work of one worker process: a chunk of records becomes token ids, split by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_fastmix.corpus.readers import Chunk
from megatron_fastmix.corpus.records import Document, RecordParser
from megatron_fastmix.corpus.splits import Splitter, content_digest
from megatron_fastmix.corpus.tokenizers import Tokenizer
from megatron_fastmix.corpus.writer import token_dtype


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
    documents of no sequences, and the end-of-document id joins the last sequence.
    """

    tokenizer: Tokenizer
    parser: RecordParser
    append_eod: bool
    splitter: Splitter
    held_out: tuple[bool, ...]
    """By split, whether its documents are held out from training."""
    excluded: frozenset[bytes]
    """Digests of held-out documents, which training splits leave out."""

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        records = chunk.records()
        count = len(self.splitter.edges)
        groups: list[list[Document]] = [[] for _ in range(count)]
        digests: list[list[bytes]] = [[] for _ in range(count)]
        duplicates = [0] * count
        bad = []
        needs_digest = count > 1 or any(self.held_out) or bool(self.excluded)
        for number, record in enumerate(records, start=1):
            records[number - 1] = b""  # beside its text it would take memory twice
            try:
                document = self.parser(record, chunk.record_format)
            except ValueError as error:
                bad.append(BadRecord(number, str(error)))
                continue
            if document is None:
                continue
            split = 0
            if needs_digest:
                digest = content_digest(document)
                split = self.splitter(digest)
                if self.held_out[split]:
                    digests[split].append(digest)
                elif digest in self.excluded:
                    duplicates[split] += 1
                    continue
            groups[split].append(document)
        return EncodedChunk(
            path=chunk.path,
            records=len(records),
            input_bytes=chunk.input_bytes,
            splits=tuple(
                self._encode(documents, tuple(found)) if documents else None
                for documents, found in zip(groups, digests, strict=True)
            ),
            bad_records=tuple(bad),
            duplicates=tuple(duplicates),
        )

    def _encode(
        self, documents: Sequence[Document], digests: tuple[bytes, ...]
    ) -> EncodedDocuments:
        texts = [part for document in documents for part in document.parts]
        ids, lengths = self.tokenizer.encode_flat(texts)
        ids = ids.astype(token_dtype(self.tokenizer.vocab_size), copy=False)
        sizes = np.fromiter((len(d.parts) for d in documents), np.int64, len(documents))
        owner = np.repeat(np.arange(len(documents)), sizes)
        if self.append_eod:
            filled = np.flatnonzero(lengths)
            # The last part with tokens of each document that has any.
            last = filled[np.flatnonzero(np.diff(owner[filled], append=-1))]
            ids = np.insert(ids, np.cumsum(lengths)[last], self.tokenizer.eod)
            lengths = lengths.copy()
            lengths[last] += 1
        mask = None
        if self.parser.record_type == "text":
            filled = np.flatnonzero(lengths)
            sequences = np.bincount(owner[filled], minlength=len(documents))
            lengths = lengths[filled]
        else:
            in_loss = [flag for document in documents for flag in document.in_loss]
            mask = np.repeat(np.array(in_loss, np.uint8), lengths).tobytes()
            lengths = np.bincount(owner, lengths, len(documents)).astype(np.int64)
            sequences = (lengths > 0).astype(np.int64)
            lengths = lengths[lengths > 0]
        return EncodedDocuments(
            tokens=ids.tobytes(),
            lengths=lengths.astype(np.int32),
            documents=sequences,
            loss_mask=mask,
            text_bytes=sum(len(t) if t.isascii() else len(t.encode("utf-8")) for t in texts),
            empty_documents=int(np.count_nonzero(sequences == 0)),
            digests=digests,
        )

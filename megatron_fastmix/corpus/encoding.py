"""The work of one worker process: a chunk of documents becomes token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_fastmix.corpus.readers import BadLine, LineRange, parse_line
from megatron_fastmix.corpus.tokenizers import Tokenizer
from megatron_fastmix.corpus.writer import token_dtype


@dataclass(frozen=True)
class EncodedChunk:
    """Documents of one chunk, ready to be written: see `IndexedDatasetWriter.write`."""

    tokens: bytes
    lengths: np.ndarray
    documents: np.ndarray
    text_bytes: int
    empty_documents: int
    lines: int
    bad_lines: tuple[BadLine, ...]


class Encoder:
    """Callable from chunk to `EncodedChunk`; picklable.

    Documents are encoded as Megatron's preprocess_data.py does it: a text is one sequence, a list
    of texts gives one sequence each; empty sequences are left out, empty documents stay as
    documents of no sequences, and the end-of-document id joins the last sequence.
    """

    def __init__(self, tokenizer: Tokenizer, json_key: str, append_eod: bool) -> None:
        self._tokenizer = tokenizer
        self._json_key = json_key
        self._append_eod = append_eod

    def __call__(self, chunk: LineRange) -> EncodedChunk:
        lines = chunk.lines()
        texts: list[str] = []
        sentences: list[int] = []
        bad = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = parse_line(line, self._json_key)
            except ValueError as error:
                bad.append(BadLine(number, str(error)))
                continue
            parts = [value] if isinstance(value, str) else value
            texts += parts
            sentences.append(len(parts))
        ids = iter(self._tokenizer.encode_batch(texts))
        flat: list[int] = []
        lengths: list[int] = []
        documents = []
        for count in sentences:
            before = len(lengths)
            for _ in range(count):
                sequence = next(ids)
                if sequence:
                    flat += sequence
                    lengths.append(len(sequence))
            if self._append_eod and len(lengths) > before:
                flat.append(self._tokenizer.eod)
                lengths[-1] += 1
            documents.append(len(lengths) - before)
        return EncodedChunk(
            tokens=np.array(flat, token_dtype(self._tokenizer.vocab_size)).tobytes(),
            lengths=np.array(lengths, np.int32),
            documents=np.array(documents, np.int64),
            text_bytes=sum(len(text.encode()) for text in texts),
            empty_documents=documents.count(0),
            lines=len(lines),
            bad_lines=tuple(bad),
        )

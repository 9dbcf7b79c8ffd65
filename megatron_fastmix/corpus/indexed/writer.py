"""Writing Megatron's indexed datasets, byte for byte as Megatron-core's builder does.

`PREFIX.bin` holds the token ids one after another; `PREFIX.idx` holds: 9 bytes of magic, the
version (uint64, 1), the type of the ids (uint8), the number of sequences S and of document
indices D + 1 (uint64 each), S sequence lengths (int32), S byte offsets into the .bin (int64) and
D + 1 document indices (int64: the sequence at which each document begins, and S). Unlike
Megatron-core's `IndexedDatasetBuilder`, nothing grows in memory, torch is not imported, and the
two files take their names only when both are complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

INDEX_MAGIC = b"MMIDIDX\x00\x00"
INDEX_VERSION = 1
DTYPE_CODES: dict[int, type[np.number]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
_BLOCK = 1 << 18


def token_dtype(vocab_size: int) -> type[np.number]:
    """The type in which Megatron stores ids of such a vocabulary."""
    return np.uint16 if vocab_size < 65500 else np.int32


@dataclass(frozen=True, kw_only=True)
class WriterState:
    """How much of a dataset is safely on the disk."""

    tokens: int
    sequences: int
    documents: int


class IndexedDatasetWriter:
    """Writes one dataset into files named `PREFIX.*.partial` until `finish`.

    Lengths and document indices go to files of their own until `finish` assembles the index, so
    memory is flat in the size of the corpus. With a state that an earlier writer saved, it
    continues there and cuts off what was written after.
    """

    def __init__(
        self, prefix: str | Path, dtype: type[np.number], resume: WriterState | None = None
    ) -> None:
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype)
        self.tokens = self.sequences = self.documents = 0
        self._digest = hashlib.sha256()
        self._paths = {
            part: f"{self.prefix}.{part}.partial" for part in ("bin", "lengths", "documents", "idx")
        }
        Path(self.prefix).parent.mkdir(parents=True, exist_ok=True)
        if resume is not None:
            self._continue(resume)
        self._files: dict[str, BinaryIO] = {
            part: open(self._paths[part], "ab" if resume else "wb")  # noqa: SIM115  closed below
            for part in ("bin", "lengths", "documents")
        }

    @staticmethod
    def can_resume(prefix: str | Path, dtype: type[np.number], state: WriterState) -> bool:
        """Whether the partial files hold at least what `state` says."""
        try:
            return all(
                os.path.getsize(f"{prefix}.{part}.partial") >= size
                for part, size in _partial_sizes(np.dtype(dtype), state).items()
            )
        except OSError:
            return False

    def _continue(self, state: WriterState) -> None:
        for part, size in _partial_sizes(self.dtype, state).items():
            os.truncate(self._paths[part], size)
        for block in _blocks(self._paths["bin"]):
            self._digest.update(block)
        self.tokens, self.sequences, self.documents = (
            state.tokens,
            state.sequences,
            state.documents,
        )

    def write(self, tokens: bytes, lengths: np.ndarray, documents: np.ndarray) -> None:
        """Appends documents.

        `tokens` are ids of the writer's type, as bytes; `lengths` (sequences,) counts tokens of
        each sequence, `documents` (documents,) counts sequences of each document.
        """
        self._files["bin"].write(tokens)
        self._digest.update(tokens)
        self._files["lengths"].write(lengths.astype(np.int32).tobytes())
        ends = self.sequences + np.cumsum(documents, dtype=np.int64)
        self._files["documents"].write(ends.tobytes())
        self.tokens += len(tokens) // self.dtype.itemsize
        self.sequences += len(lengths)
        self.documents += len(documents)

    def save(self) -> WriterState:
        """Brings everything written so far to the disk and says how much that is."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return WriterState(tokens=self.tokens, sequences=self.sequences, documents=self.documents)

    def finish(self) -> tuple[str, str]:
        """Writes the index and gives both files their names; returns sha256 of .bin and .idx.

        The .idx is renamed last, so it exists only beside a complete .bin.
        """
        self.save()
        self.close()
        digest = hashlib.sha256()
        with open(self._paths["idx"], "wb") as index:
            for block in self._index_blocks():
                index.write(block)
                digest.update(block)
            index.flush()
            os.fsync(index.fileno())
        # An older index must not stand beside the new data, not even for a moment.
        Path(self.prefix + ".idx").unlink(missing_ok=True)
        os.replace(self._paths["bin"], self.prefix + ".bin")
        os.replace(self._paths["idx"], self.prefix + ".idx")
        self.discard()
        return self._digest.hexdigest(), digest.hexdigest()

    def close(self) -> None:
        """Closes the partial files and leaves them for a later writer; full disks are ignored."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def discard(self) -> None:
        """Closes and deletes the partial files."""
        self.close()
        for path in self._paths.values():
            Path(path).unlink(missing_ok=True)

    def _index_blocks(self) -> Iterator[bytes]:
        (code,) = [c for c, dtype in DTYPE_CODES.items() if self.dtype == dtype]
        yield INDEX_MAGIC + struct.pack(
            "<QBQQ", INDEX_VERSION, code, self.sequences, self.documents + 1
        )
        yield from _blocks(self._paths["lengths"])
        offset = 0
        for block in _blocks(self._paths["lengths"]):
            sizes = np.frombuffer(block, np.int32).astype(np.int64) * self.dtype.itemsize
            ends = offset + np.cumsum(sizes)
            yield (ends - sizes).tobytes()
            offset = int(ends[-1])
        yield struct.pack("<q", 0)
        yield from _blocks(self._paths["documents"])


def _partial_sizes(dtype: np.dtype, state: WriterState) -> dict[str, int]:
    return {
        "bin": state.tokens * dtype.itemsize,
        "lengths": state.sequences * 4,
        "documents": state.documents * 8,
    }


def _blocks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block

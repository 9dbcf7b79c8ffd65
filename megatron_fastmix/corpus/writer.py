"""Writing Megatron's indexed datasets, byte for byte as Megatron-core's builder does.

`PREFIX.bin` holds the token ids one after another; `PREFIX.idx` holds: 9 bytes of magic, the
version (uint64, 1), the type of the ids (uint8), the number of sequences S and of document
indices D + 1 (uint64 each), S sequence lengths (int32), S byte offsets into the .bin (int64) and
D + 1 document indices (int64: the sequence at which each document begins, and S). Unlike
Megatron-core's `IndexedDatasetBuilder`, nothing grows in memory, torch is not imported, and the
two files take their names only when both are complete.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
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


class IndexedDatasetWriter:
    """Writes one dataset; a context manager that leaves nothing behind unless `finish` was called.

    Lengths and document indices go to files of their own until `finish` assembles the index, so
    memory is flat in the size of the corpus.
    """

    def __init__(self, prefix: str | Path, dtype: type[np.number]) -> None:
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype)
        self.tokens = self.sequences = self.documents = 0
        Path(self.prefix).parent.mkdir(parents=True, exist_ok=True)
        self._paths = {
            part: f"{self.prefix}.{part}.partial" for part in ("bin", "lengths", "documents", "idx")
        }
        self._files: dict[str, BinaryIO] = {
            part: open(self._paths[part], "wb")  # noqa: SIM115  closed by finish or discard
            for part in ("bin", "lengths", "documents")
        }
        self._digest = hashlib.sha256()

    def __enter__(self) -> IndexedDatasetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

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

    def finish(self) -> tuple[str, str]:
        """Writes the index and gives both files their names; returns sha256 of .bin and .idx.

        The .idx is renamed last, so it exists only beside a complete .bin.
        """
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
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
        return self._digest.hexdigest(), digest.hexdigest()

    def discard(self) -> None:
        """Closes and deletes whatever has not got its final name."""
        for file in self._files.values():
            file.close()
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


def _blocks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block

"""Reading records: a file becomes chunks in the parent, a chunk becomes records in a worker.

A chunk of a plain file is only its place, so that workers read it themselves; compressed files
and Parquet are read by the parent, which hands out what it unpacked. Chunks of a file cover it in
order and are the same each time, so that an interrupted run can skip those it has done.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megatron_fastmix.corpus.reading.file_kinds import check_packed
from megatron_fastmix.corpus.reading.first_bytes import HEAD_BYTES, check_head, without_mark
from megatron_fastmix.corpus.reading.inputs import COMPRESSIONS, InputFormat, file_format
from megatron_fastmix.errors import DataError, StorageError
from megatron_fastmix.extras import needs_package
from megatron_fastmix.storage import is_storage_error
from megatron_fastmix.text_files import check_no_pointer

CHUNK_BYTES = 1 << 20
"""Bytes of text per chunk: long enough to hide the hand-over, short enough to share out."""
PARQUET_ROWS = 512
"""Rows of a Parquet file per chunk."""
_PIECE = 1 << 16
_ZSTD_WINDOW = 1 << 31
"""The largest that `zstd --long=31` writes; the library refuses more than 128 MiB unasked."""

Record = bytes | dict[str, Any]
"""A line or a whole file as bytes, or a row of Parquet."""


@dataclass(frozen=True, kw_only=True)
class Chunk(ABC):
    """A part of one file."""

    path: str
    record_format: InputFormat
    """What each record is; never `auto`."""
    input_bytes: int
    """Bytes of the file that the chunk stands for, for the progress display."""

    @abstractmethod
    def records(self) -> list[Record]:
        """Reads the records; blank lines are among them, so that lines can be counted."""


@dataclass(frozen=True, kw_only=True)
class FileRange(Chunk):
    """Bytes [start, stop) of a plain file: whole lines, or for `text` the whole file."""

    start: int
    stop: int

    def records(self) -> list[Record]:
        with _reading(self.path), open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(self.stop - self.start)
        if self.start == 0:
            data = without_mark(data)
        return [data] if self.record_format == "text" else _split_lines(data)


@dataclass(frozen=True, kw_only=True)
class Unpacked(Chunk):
    """Text that was unpacked from a compressed file."""

    data: bytes

    def records(self) -> list[Record]:
        return [self.data] if self.record_format == "text" else _split_lines(self.data)


@dataclass(frozen=True, kw_only=True)
class Rows(Chunk):
    """Rows of a Parquet file, columns by name; bytes for a row whose text is no UTF-8."""

    rows: list[Record]

    def records(self) -> list[Record]:
        return list(self.rows)


def iter_chunks(
    path: str | Path,
    input_format: InputFormat = "auto",
    columns: Sequence[str] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[Chunk]:
    """Cuts a file into chunks of about `chunk_bytes`; `columns` are those to read from Parquet.

    Raises `DataError` for a file that cannot be read or unpacked, for a pointer of Git LFS, and for
    one whose beginning tells that none of its lines is a record.
    """
    name = str(path)
    with _reading(name):
        check_no_pointer(name)
    record_format = (file_format(path) or "jsonl") if input_format == "auto" else input_format
    if record_format == "parquet":
        chunks = _parquet_chunks(name, columns)
    elif name.lower().endswith(COMPRESSIONS):
        chunks = _unpacked_chunks(name, record_format, chunk_bytes)
    else:
        chunks = _plain_chunks(name, record_format, chunk_bytes)
    while True:
        # Around the reading alone: what is done with a chunk may fail for reasons of its own.
        with _reading(name):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Raises `DataError` for an unreadable input, `StorageError` where the file system failed."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and is_storage_error(error):
            raise StorageError(
                f"{path}: cannot read the input: {error.strerror}; mend the file system and run "
                "again, it continues where it stopped"
            ) from None
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: cannot read the input: {reason}; copy or make the file again"
        ) from None


def _plain_chunks(path: str, record_format: InputFormat, chunk_bytes: int) -> Iterator[Chunk]:
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        start = 0
        file.seek(0)
        check_head(path, file.read(HEAD_BYTES), record_format)
        while start < size:
            stop = size
            if record_format != "text":
                stop = _end_of_lines(file, start, start + chunk_bytes, size)
            yield FileRange(
                path=path,
                record_format=record_format,
                input_bytes=stop - start,
                start=start,
                stop=stop,
            )
            start = stop


def _end_of_lines(file: IO[bytes], start: int, stop: int, size: int) -> int:
    """Where the last line ends that begins at or after `start` and ends by `stop`; a longer line's
    own end. Reads in pieces, as a line may be long."""
    if stop >= size:
        return size
    at = stop
    while at > start:
        first = max(start, at - _PIECE)
        file.seek(first)
        found = file.read(at - first).rfind(b"\n")
        if found >= 0:
            return first + found + 1
        at = first
    file.seek(stop)
    while (piece := file.readline(_PIECE)) and not piece.endswith(b"\n"):
        pass
    return file.tell()


def _unpacked_chunks(path: str, record_format: InputFormat, chunk_bytes: int) -> Iterator[Chunk]:
    done = 0
    with open(path, "rb") as packed:
        check_packed(path, packed.read(8))
        packed.seek(0)
        with _unpack(path, packed) as stream:
            while True:
                data = stream.read() if record_format == "text" else stream.read(chunk_bytes)
                if not data:
                    return
                if record_format != "text" and not data.endswith(b"\n"):
                    data += _rest_of_line(stream)
                if not done:
                    check_head(path, data[:HEAD_BYTES], record_format)
                    data = without_mark(data)
                at = packed.tell()
                yield Unpacked(
                    path=path, record_format=record_format, input_bytes=at - done, data=data
                )
                done = at


def _rest_of_line(stream: IO[bytes]) -> bytes:
    pieces = []
    while piece := stream.readline(1 << 20):
        pieces.append(piece)
        if piece.endswith(b"\n"):
            break
    return b"".join(pieces)


def _unpack(path: str, packed: IO[bytes]) -> IO[bytes]:
    if path.lower().endswith(".gz"):
        return gzip.open(packed, "rb")  # type: ignore[return-value]
    with needs_package("zstandard", f"{path}: reading .zst"):
        import zstandard
    return io.BufferedReader(_ZstdFrames(zstandard, packed), CHUNK_BYTES)


class _ZstdFrames(io.RawIOBase):
    """All frames of a .zst file; unlike the package's own reader, an early end is an error."""

    def __init__(self, zstandard: Any, packed: IO[bytes]) -> None:
        self._zstandard, self._packed = zstandard, packed
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._packed.read(1 << 17)
            if not self._input:
                if self._frame is not None:
                    raise OSError("the file is truncated: its last frame has no end")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._output = memoryview(self._frame.decompress(self._input))
            except self._zstandard.ZstdError as error:
                raise OSError(str(error)) from None
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count


def _parquet_chunks(path: str, columns: Sequence[str] | None) -> Iterator[Chunk]:
    with needs_package("pyarrow", f"{path}: reading Parquet"):
        import pyarrow
        from pyarrow import parquet
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = file.schema_arrow.names
            wanted = [name for name in names if columns is None or name in columns]
            if columns is not None and not wanted:
                raise DataError(
                    f"{path}: no column {', '.join(columns)}; the file has: {', '.join(names)}"
                )
            twice = next((name for name in wanted if wanted.count(name) > 1), None)
            if twice is not None:
                raise DataError(f"{path}: has the column {twice!r} twice; keep one")
            size = Path(path).stat().st_size
            rows = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(PARQUET_ROWS, columns=wanted, use_threads=False):
                yield Rows(
                    path=path,
                    record_format="parquet",
                    input_bytes=size * batch.num_rows // rows,
                    rows=_rows(batch),
                )
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None


def _rows(batch: Any) -> list[Record]:
    """The rows of a record batch; the bytes of one whose text is no UTF-8, which is then refused as
    a line would be."""
    try:
        rows: list[Record] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:
        if batch.num_rows > 1:
            return [row for i in range(batch.num_rows) for row in _rows(batch.slice(i, 1))]
    for column in batch.columns:
        value = column.cast("binary")[0].as_py() if str(column.type).endswith("string") else None
        if value is not None and value.decode("utf-8", errors="replace").encode() != value:
            return [value]
    return [b"\xff"]  # in a list or another nested type


def _split_lines(data: bytes) -> list[Record]:
    lines: list[Record] = list(data.split(b"\n"))
    if lines[-1] == b"":
        lines.pop()
    return lines

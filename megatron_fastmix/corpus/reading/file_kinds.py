"""What a file is by its first bytes, where it is no text: packed, a table, an archive.

A name may tell otherwise, as after a download; read as text, such a file is one wrong line after
another.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.errors import DataError

_TABLE = (
    "convert it: python3 -c 'import sys, pyarrow as a, pyarrow.parquet as p; "
    "p.write_table(a.ipc.open_{}(a.OSFile(sys.argv[1])).read_all(), sys.argv[2])' "
    "{{path}} {{stem}}.parquet"
)


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of file that is no text."""

    name: str
    unpack: str | None = None
    """Command that reads it and writes text."""
    fix: str | None = None
    """What to do in place of that; `{path}` and `{stem}` are quoted for a shell."""

    def advice(self, path: str, stem: str) -> str:
        """What to do with it; `stem` is the path without its ends."""
        return (self.fix or "").format(path=shlex.quote(path), stem=shlex.quote(stem))


_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_EXPORT = "give its text as JSON lines or Parquet"
_KINDS = (
    (_GZIP, FileKind(name="gzip", unpack="gzip -dc")),
    (_ZSTANDARD, FileKind(name="Zstandard", unpack="zstd -dc")),
    (b"BZh", FileKind(name="bzip2", unpack="bzip2 -dc")),
    (b"\xfd7zXZ\0", FileKind(name="xz", unpack="xz -dc")),
    (b"\x04\x22\x4d\x18", FileKind(name="LZ4", unpack="lz4 -dc")),
    (b"PK\x03\x04", FileKind(name="a ZIP archive", fix="unpack it: unzip -d {stem} {path}")),
    (b"7z\xbc\xaf\x27\x1c", FileKind(name="a 7z archive", fix="unpack it: 7z x {path}")),
    (b"PAR1", FileKind(name="Parquet", fix="rename it: mv {path} {stem}.parquet")),
    (b"ARROW1", FileKind(name="Arrow", fix=_TABLE.format("file"))),
    (b"\xff\xff\xff\xff", FileKind(name="Arrow", fix=_TABLE.format("stream"))),
    (b"SQLite format 3\0", FileKind(name="an SQLite database", fix=_EXPORT)),
    (b"\x89HDF\r\n", FileKind(name="HDF5", fix=_EXPORT)),
    (b"\x93NUMPY", FileKind(name="a NumPy array", fix=_EXPORT)),
    (b"%PDF-", FileKind(name="PDF", fix="extract its text: pdftotext {path} {stem}.txt")),
    *((bytes([0x80, n]), FileKind(name="a Python pickle", fix=_EXPORT)) for n in range(2, 6)),
    (
        b"MMIDIDX\0\0",
        FileKind(
            name="the index of a tokenized dataset",
            fix="give the text that it was made of, or the dataset to `search` as it is",
        ),
    ),
)
_TAR = FileKind(name="a tar archive", unpack="tar -xOf -")
_TAR_PLACE = 257


def file_kind(head: bytes) -> FileKind | None:
    """The kind of the file that begins so; None for text and for what is not known."""
    if not _is_binary(head):
        return None
    if head[_TAR_PLACE : _TAR_PLACE + 5] == b"ustar":
        return _TAR
    return next((kind for mark, kind in _KINDS if head.startswith(mark)), None)


def check_packed(path: str, head: bytes) -> None:
    """Raises `DataError` where the file is not packed as its name tells."""
    end = Path(path).suffix.lower()
    mark = {".gz": _GZIP, ".zst": _ZSTANDARD}[end]
    # A Zstandard file may begin with a frame of its user's own.
    if not head or head.startswith(mark) or (end == ".zst" and head[1:4] == b"\x2a\x4d\x18"):
        return
    kind = file_kind(head + bytes(1))  # the zero tells that it is no text
    found = (
        f"it is {kind.name}, by its first bytes" if kind else "its first bytes are no such file's"
    )
    raise DataError(
        f"{path}: cannot read the input: the name tells {end}, but {found}; rename it (text has no "
        f"{end} at its end), or copy the file again"
    )


def _is_binary(head: bytes) -> bool:
    """Whether it is no text: a text may begin with the letters of a mark."""
    if b"\0" in head:
        return True
    try:
        head[:4096].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start < min(len(head), 4096) - 3  # not a character that is cut there
    return False

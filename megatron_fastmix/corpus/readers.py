"""Reading documents: an input file becomes chunks, and a chunk becomes documents.

A chunk is a small picklable description of a part of a file, so that worker processes read the
file themselves and the parent only hands out work. Chunks of a file are in order and cover it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.errors import DataError

CHUNK_BYTES = 1 << 20
"""Bytes of a plain file per chunk: long enough to hide the hand-over, short enough to share out."""


@dataclass(frozen=True)
class BadLine:
    """A line that is no document; `line` counts from 1 in its chunk."""

    line: int
    reason: str


@dataclass(frozen=True)
class LineRange:
    """Whole lines of a plain JSONL file: bytes [start, stop)."""

    path: str
    start: int
    stop: int

    def lines(self) -> list[bytes]:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(self.stop - self.start)
        lines = data.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        return lines


def iter_chunks(path: str | Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[LineRange]:
    """Cuts a JSONL file at line ends into chunks of about `chunk_bytes`.

    Raises `DataError` for a file that is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            start = 0
            while start < size:
                file.seek(min(start + chunk_bytes, size))
                file.readline()
                stop = file.tell()
                yield LineRange(str(path), start, stop)
                start = stop
    except OSError as error:
        raise DataError(f"{path}: cannot read the input: {error.strerror}") from None


def parse_line(line: bytes, json_key: str) -> list[str] | str:
    """The text of one JSONL line: a reason in `ValueError` where it is not a document.

    As for Megatron, the value may be a text or a list of texts (sentences of one document).
    `json_key` may be dotted for a nested value; a key that itself contains dots wins.
    """
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1} of the line") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("malformed JSON: nested too deeply") from None
    return _text_of(value, json_key)


def read_documents(path: str | Path, json_key: str = "text") -> Iterator[str]:
    """Documents of one file in order, sentences joined by line breaks.

    Raises `DataError` with file and line for a malformed one.
    """
    number = 0
    for chunk in iter_chunks(path):
        for line in chunk.lines():
            number += 1
            if not line.strip():
                continue
            try:
                text = parse_line(line, json_key)
            except ValueError as error:
                raise DataError(f"{path}:{number}: {error}; correct or remove the line") from None
            yield text if isinstance(text, str) else "\n".join(text)


def _text_of(value: object, json_key: str) -> list[str] | str:
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    found: object = value
    if json_key in value:
        found = value[json_key]
    else:
        for part in json_key.split("."):
            if not isinstance(found, dict) or part not in found:
                keys = ", ".join(map(str, list(value)[:10]))
                raise ValueError(f"no key {json_key!r}; the line has: {keys}")
            found = found[part]
    texts = found if isinstance(found, list) else [found]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"the value of {json_key!r} is {type(text).__name__}, not text")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"the value of {json_key!r} holds half a surrogate pair") from None
    return found  # type: ignore[return-value]

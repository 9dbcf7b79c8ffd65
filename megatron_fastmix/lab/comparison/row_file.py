"""A JSONL file that several processes append to: a record is there whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_fastmix.errors import DataError
from megatron_fastmix.text_files import decode_text, parse_json

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The records, none where the file is missing; a torn last line is left out.

    Raises `DataError`, with the line's number, for any other line that is no JSON object.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: cannot read the rows: {error.strerror}") from None
    return _parse(content, path)


def append_records(path: Path, make: Callable[[list[Record]], list[Record]]) -> None:
    """Appends what `make` returns for the records that are there, fsynced; makes missing folders.

    One process at a time does so, and sees what the others have appended. A torn line, left by a
    kill, is cut off first. `ValueError` for NaN or Inf, `DataError` as `read_records`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, by a kill too
        file.seek(0)
        content = file.read()
        new = make(_parse(content, path))
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in new]
        whole = _whole(content)
        file.truncate(min(len(whole), len(content)))
        file.write(whole[len(content) :] + "".join(f"{line}\n" for line in lines).encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def _parse(content: bytes, path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(_whole(content).splitlines(), start=1):
        try:
            record = parse_json(decode_text(line))
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}; delete the line to make it anew") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: found {line[:80]!r}; expected a JSON object")
        records.append(record)
    return records


def _whole(content: bytes) -> bytes:
    """The whole lines; a last one without its end is whole where an editor has left it so, and torn
    where it is no JSON."""
    end = content.rfind(b"\n") + 1
    try:
        parse_json(decode_text(content[end:]))
    except ValueError:
        return content[:end]
    return content + b"\n"

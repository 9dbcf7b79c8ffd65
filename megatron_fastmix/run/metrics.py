"""`metrics.jsonl`: what happened during a search, one self-contained JSON object a line.

Every line has `kind`, `step` (optimizer steps done) and `time` (seconds since the epoch).
Kinds: `run` (names and configuration, once), `inner`, `outer`, `checkpoint`, `end`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.run.metric_line import check_line
from megatron_fastmix.run.packed_line import number_keys, pack, unpack
from megatron_fastmix.text_files import parse_json


class MetricsLog:
    """Appends lines to `metrics.jsonl`; one process writes it (rank 0).

    Each line is flushed as it is written, so a killed run loses at most the line in hand. A torn
    last line, left by a kill, is dropped when the file is opened again.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._names: list[str] = []  # of the sources, which packed lines leave out
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _drop_torn_line(self.path)
        self._open()

    def _open(self) -> None:
        # Unbuffered: of a line that could not be written, nothing comes later by itself.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self._whole = self._file.seek(0, os.SEEK_END)

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Appends one line. NaN and Inf become null; NumPy and torch scalars become numbers.

        Where the file cannot be written any longer, as after the loss of a handle, it is written
        anew. Raises `OSError`, which names the file, where that fails too; all lines before are
        whole then.
        """
        line = {"kind": kind, "step": step, "time": time.time(), **fields}
        if kind == "run":
            self._names = list(fields.get("sources", ()))
        plain = pack(_plain(line), self._names)
        text = _text(plain)
        content = text.encode("utf-8", errors="replace")
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[self._file.write(rest) :]
        except (OSError, ValueError):  # ValueError where it was closed and could not be opened
            self._write_anew(content)
            return
        self._whole += len(content)

    def _write_anew(self, content: bytes) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        before = b""
        if self._whole:
            with open(self.path, "rb") as file:
                before = file.read(self._whole)
        write_atomically(self.path, before + content)
        self._open()

    def truncate_after(self, step: int) -> None:
        """Drops the lines of later steps than `step`: a resumed run writes them again."""
        self._file.close()
        try:
            kept = [line for line in read_metrics(self.path) if line["step"] <= step]
            self._names = _sources(kept)
            packed = [pack(line, self._names) for line in kept]
            text = "".join(map(_text, packed))
            write_atomically(self.path, text)
        finally:
            self._open()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # each line was written when it came
            self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a torn last line (a run that was killed or still writes) is
    left out. Raises `DataError`, with the line's number, for anything else that is malformed.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the metrics: {error.strerror}; give a run folder that holds them"
        ) from None
    whole, _, _ = content.rpartition(b"\n")
    lines: list[dict[str, Any]] = []
    for number, raw in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            line = parse_json(raw.decode("utf-8"), constants=True)
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: {error}; delete the line or write the run again"
            ) from None
        if (
            not isinstance(line, dict)
            or not isinstance(line.get("kind"), str)
            or type(line.get("step")) is not int
        ):
            raise DataError(
                f"{path}:{number}: expected an object with kind and step, found {raw[:80]!r}; "
                "is this the metrics.jsonl of a run?"
            )
        try:
            numbers = number_keys(line)
            line = unpack(line, _sources(lines))
            check_line(line, known=numbers)
        except ConfigError as error:
            raise DataError(f"{path}:{number}: {error}; delete the line or restore it") from None
        lines.append(line)
    return lines


def _text(line: dict[str, Any]) -> str:
    between = (",", ":") if "packed" in line else None
    return json.dumps(line, ensure_ascii=False, separators=between) + "\n"


def _sources(lines: list[dict[str, Any]]) -> list[str]:
    """Those of the first line that says them."""
    run = next((line for line in lines if line["kind"] == "run"), {})
    names: list[str] = run.get("sources", [])
    return names


def _drop_torn_line(path: Path) -> None:
    with open(path, "rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy or torch scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

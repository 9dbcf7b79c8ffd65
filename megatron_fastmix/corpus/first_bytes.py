"""What an input's first bytes tell: text in another encoding, and JSON that is no record a line.

Both make every line of a file wrong, so they are told once and for the file, whatever number of bad
lines is allowed.
"""

from __future__ import annotations

import codecs
import json
import os
import shlex

from megatron_fastmix.errors import DataError
from megatron_fastmix.text_files import wide_encoding

HEAD_BYTES = 1 << 20
"""How much of a file is looked at."""

_UNPACK = {".gz": "gzip -dc", ".zst": "zstd -dc"}
_LINE_PER_ITEM = (
    "python3 -c 'import json, sys; [print(json.dumps(r)) for r in json.load(sys.stdin)]'"
)
_ONE_LINE = "python3 -m json.tool --compact -"
_LINE_PER_VALUE = "jq -c ."


def without_mark(data: bytes) -> bytes:
    """The text without UTF-8's byte-order mark, which some editors put before it."""
    return data.removeprefix(codecs.BOM_UTF8)


def check_head(path: str, head: bytes, *, json_lines: bool) -> None:
    """Raises `DataError` with the command that converts the file, for text in UTF-16 or UTF-32 and,
    where `json_lines` are expected, for JSON that is one array or goes over several lines.

    `head` is the beginning of the unpacked file.
    """
    wide = wide_encoding(head)
    if wide:
        raise DataError(
            f"{path}: the text is in {wide[0]}, {wide[1]}; convert it to UTF-8: "
            + _command(path, f"iconv -f {wide[0]} -t UTF-8", "utf8")
        )
    if not json_lines:
        return
    text = without_mark(head).decode("utf-8", errors="replace").strip()
    first, _, more = text.partition("\n")
    if text.startswith("[") and not (more and _is_json(first)):
        raise DataError(
            f"{path}: holds one JSON array, not a JSON object a line; convert it: "
            + _command(path, _LINE_PER_ITEM, "lines")
        )
    if text.startswith("{") and more and not _is_json(first):
        values = _values_over_lines(text, len(head) == HEAD_BYTES)
        if values:
            what, command = (
                ("one JSON object", _ONE_LINE) if values == 1 else ("objects", _LINE_PER_VALUE)
            )
            raise DataError(
                f"{path}: holds {what} over several lines, not a JSON object a line; convert it: "
                + _command(path, command, "lines")
            )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _values_over_lines(text: str, is_cut: bool) -> int:
    """1 where one JSON value goes over lines, 2 where others follow; 0 where none is found."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        # The end may lie further on, and nobody writes a record as a lone brace.
        first, second, *_ = text.split("\n", 2)
        return int(is_cut and first.strip() == "{" and not _is_json(second))
    if "\n" not in text[:end]:
        return 0
    return 2 if text[end:].strip() else 1


def _command(path: str, command: str, kind: str) -> str:
    """A line to copy, which reads `path` and writes a file beside it."""
    stem, end = os.path.splitext(path)
    quoted = shlex.quote(path)
    if end in _UNPACK:
        stem = os.path.splitext(stem)[0]
        command = f"{_UNPACK[end]} {quoted} | {command}"
    else:
        command = f"{command} < {quoted}"
    name = f"{stem}.{kind}{'.txt' if kind == 'utf8' and end == '.txt' else '.jsonl'}"
    return f"{command} > {shlex.quote(name)}"

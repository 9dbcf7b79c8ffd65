"""What an input's first bytes tell: that it is no text, text in another encoding, and JSON that is
no record a line.

All make every line of a file wrong, so they are told once and for the file, whatever number of bad
lines is allowed.
"""

from __future__ import annotations

import codecs
import json
import os
import shlex

from megatron_fastmix.corpus.reading.file_kinds import file_kind
from megatron_fastmix.corpus.reading.inputs import InputFormat
from megatron_fastmix.corpus.reading.not_records import (
    CARRIAGE_RETURNS,
    LINE_FEEDS,
    LINE_PER_ITEM,
    LINE_PER_TEXT,
    WHOLE_JSON,
    Form,
    form_of_columns,
    form_of_lines,
    form_of_object,
    form_of_only_line,
    is_json,
)
from megatron_fastmix.errors import DataError
from megatron_fastmix.text_files import wide_encoding

HEAD_BYTES = 1 << 20
"""How much of a file is looked at."""

_UNPACK = {".gz": "gzip -dc", ".zst": "zstd -dc"}
_ONE_LINE = f"python3 -c 'import json; print(json.dumps({WHOLE_JSON}))'"
_LINE_PER_VALUE = "jq -c ."


def without_mark(data: bytes) -> bytes:
    """The text without UTF-8's byte-order mark, which some editors put before it."""
    return data.removeprefix(codecs.BOM_UTF8)


def check_head(path: str, head: bytes, record_format: InputFormat) -> None:
    """Raises `DataError` with what converts the file, for one that is packed or no text, for text
    in UTF-16 or UTF-32 and, as `jsonl`, for JSON that is one array or goes over several lines, and
    for other forms of which no line is a record; as `lines`, for text that ends them with carriage
    returns alone.

    `head` is the beginning of the unpacked file.
    """
    kind = file_kind(head)
    if kind:
        how = (
            f"unpack it: {_command(path, kind.unpack, 'unpacked')}"
            if kind.unpack
            else kind.advice(path, _stem(path))
        )
        raise DataError(f"{path}: is {kind.name}, by its first bytes, and no text; {how}")
    wide = wide_encoding(head)
    if wide:
        raise DataError(
            f"{path}: the text is in {wide[0]}, {wide[1]}; convert it to UTF-8: "
            + _command(path, f"iconv -f {wide[0]} -t UTF-8", "utf8")
        )
    if record_format == "lines" and b"\n" not in head and head.count(b"\r") > 1:
        raise DataError(
            f"{path}: {CARRIAGE_RETURNS}; convert it: " + _command(path, LINE_FEEDS, "newlines")
        )
    if record_format != "jsonl":
        return
    text = without_mark(head).decode("utf-8", errors="replace").strip(" \t\r\n")
    first, _, more = text.partition("\n")
    if text.startswith("[") and not (more and is_json(first)):
        line = LINE_PER_TEXT if text[1:].lstrip().startswith('"') else LINE_PER_ITEM
        raise DataError(
            f"{path}: holds one JSON array, not a JSON object a line; convert it: "
            + _command(path, line.format(WHOLE_JSON), "lines")
        )
    if not more or first.strip() == "{":
        form = form_of_columns(text, is_cut=len(head) == HEAD_BYTES)
        if form:
            raise _wrong_form(path, form)
    if text.startswith("{") and more and not is_json(first):
        values = _values_over_lines(text, len(head) == HEAD_BYTES)
        form = form_of_object(_loaded(text)) if values == 1 else None
        if values and not form:
            what, command = (
                ("one JSON object", _ONE_LINE) if values == 1 else ("objects", _LINE_PER_VALUE)
            )
            form = Form(what=f"holds {what} over several lines", command=command)
        if form:
            raise _wrong_form(path, form)
    if not more and len(head) < HEAD_BYTES:
        form = form_of_only_line(_loaded(text))
        if form:
            raise _wrong_form(path, form)
    if len(head) < HEAD_BYTES or more:  # a line of which the end is known
        form = form_of_lines(text)
        if form:
            raise _wrong_form(path, form)


def _wrong_form(path: str, form: Form) -> DataError:
    if not form.command:
        return DataError(f"{path}: {form.what}; {form.fix}")
    return DataError(
        f"{path}: {form.what}, not a JSON object a line; convert it: "
        + _command(path, form.command, "lines")
    )


def _loaded(text: str) -> object:
    """The JSON value of the text; None where it is none."""
    return json.loads(text) if is_json(text) else None


def _values_over_lines(text: str, is_cut: bool) -> int:
    """1 where one JSON value goes over lines, 2 where others follow; 0 where none is found."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        # The end may lie further on, and nobody writes a record as a lone brace.
        first, second, *_ = text.split("\n", 2)
        return int(is_cut and first.strip() == "{" and not is_json(second))
    if "\n" not in text[:end]:
        return 0
    return 2 if text[end:].strip() else 1


def _command(path: str, command: str, kind: str) -> str:
    """A line to copy, which reads `path` and writes a file beside it."""
    stem, end = _stem(path), os.path.splitext(path)[1].lower()
    quoted = shlex.quote(path)
    unpack = f"{_UNPACK[end]} {quoted} | {command}" if end in _UNPACK else None
    command = unpack or f"{command} < {quoted}"
    name = f"{stem}.{kind}{'.txt' if kind != 'lines' and end == '.txt' else '.jsonl'}"
    return f"{command} > {shlex.quote(name)}"


def _stem(path: str) -> str:
    """The path without what tells its format and its compression."""
    stem, end = os.path.splitext(path)
    return os.path.splitext(stem)[0] if end.lower() in _UNPACK else stem

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

from megatron_fastmix.corpus.file_kinds import file_kind
from megatron_fastmix.corpus.not_records import Form, form_of_lines, form_of_object
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
    """Raises `DataError` with what converts the file, for one that is packed or no text, for text
    in UTF-16 or UTF-32 and, where `json_lines` are expected, for JSON that is one array or goes
    over several lines, and for other forms of which no line is a record.

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
    if not json_lines:
        return
    text = without_mark(head).decode("utf-8", errors="replace").strip(" \t\r\n")
    first, _, more = text.partition("\n")
    if text.startswith("[") and not (more and _is_json(first)):
        raise DataError(
            f"{path}: holds one JSON array, not a JSON object a line; convert it: "
            + _command(path, _LINE_PER_ITEM, "lines")
        )
    if text.startswith("{") and more and not _is_json(first):
        values = _values_over_lines(text, len(head) == HEAD_BYTES)
        form = form_of_object(_loaded(text)) if values == 1 else None
        if values and not form:
            what, command = (
                ("one JSON object", _ONE_LINE) if values == 1 else ("objects", _LINE_PER_VALUE)
            )
            form = Form(what=f"holds {what} over several lines", command=command)
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


def _is_json(text: str) -> bool:
    return _loaded(text, missing=_NO_JSON) is not _NO_JSON


_NO_JSON = object()


def _loaded(text: str, missing: object = None) -> object:
    """The JSON value of the text; `missing` where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return missing


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

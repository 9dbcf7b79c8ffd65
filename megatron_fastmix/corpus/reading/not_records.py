"""Which form a file has where none of its first lines is a record, and what makes JSON lines of
it."""

from __future__ import annotations

import ast
import csv
import json
import re
from dataclasses import dataclass

_LINES = 20
"""How many lines are looked at; one record among them makes the others bad lines."""
_SHOWN = 40
_LISTS = ("data", "rows", "records", "examples", "items", "instances", "samples", "train")
"""Keys under which one object over the whole file keeps its records."""
_SPEAKERS = {"role", "from"}
"""Of these keys a message has one."""
CARRIAGE_RETURNS = "ends its lines with carriage returns alone"
LINE_FEEDS = "tr '\\r' '\\n'"
# These read a file that begins with a byte-order mark too; of bytes, `json` tells it by itself.
WHOLE_JSON = 'json.load(open(0, "rb"))'
LINE_PER_ITEM = "python3 -c 'import json; [print(json.dumps(r)) for r in {}]'"
LINE_PER_TEXT = LINE_PER_ITEM.replace("dumps(r)", 'dumps({{"text": r}})')
_LINE_PER_ROW = (
    f"python3 -c 'import json; t = {WHOLE_JSON}; "
    "[print(json.dumps(dict(zip(t, r)))) for r in zip(*[c.values() for c in t.values()])]'"
)
_FIRST_COLUMN = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{\s*"0"\s*:')
_TEXT = 'open(0, encoding="utf-8-sig")'
_PYTHON_LINES = (
    "python3 -c 'import ast, json; [print(json.dumps(ast.literal_eval(s))) "
    f"for s in {_TEXT} if s.strip()]'"
)
_ESCAPED_LINES = (
    "python3 -c 'import json; [print(json.dumps(json.loads(s, strict=False))) "
    'for s in open(0, encoding="utf-8-sig", newline="\\n") if s.strip()]\''
)
_TABLE_ROWS = (
    "python3 -c 'import csv, json; csv.field_size_limit(2**31 - 1); "
    f'[print(json.dumps(r)) for r in csv.DictReader({_TEXT}, delimiter="{{}}")]\''
)


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a file holds in place of a record a line."""

    what: str
    """In words that follow the path."""
    command: str | None = None
    """Reads the file and writes a record a line; None where `fix` says what to do."""
    fix: str = ""


def form_of_lines(text: str) -> Form | None:
    """The form of `text`, the beginning of a file; None where its lines are to be told one by one:
    a record is among them, or they are not known."""
    lines = [line for line in text.split("\n", _LINES)[:_LINES] if line.strip()]
    if len(lines) > 1 and all(map(_has_comma, lines[:-1])):
        return Form(what="has a comma after each object", command="sed 's/,[[:space:]]*$//'")
    if not lines or any(_loaded(line) is not None for line in lines):
        return None
    first = lines[0].strip(" \t\r")
    if not text.strip("\0 \r\n\t"):
        return Form(
            what="holds nothing but NUL bytes, as a copy that was cut off leaves",
            fix="copy or make the file again",
        )
    if first.startswith("\x1e"):
        return Form(
            what="has a record separator (RFC 7464) before records", command="tr -d '\\036'"
        )
    if first.startswith("<"):
        return Form(
            what=f"is HTML or XML: it begins with {first[:_SHOWN]!r}",
            fix="give the data; a download may have saved a page that tells an error",
        )
    if first.startswith("{"):
        return _of_objects(first)
    if is_json(first):
        return None
    return _of_table(lines) or (
        None
        if first[0] in '["'
        else Form(
            what=f"holds no JSON: it begins with {first[:_SHOWN]!r}",
            fix="give JSON lines, or for plain text the input format text (a document per file) or "
            "lines (a document per line)",
        )
    )


def form_of_object(value: object) -> Form | None:
    """The form of a file that is one JSON object over several lines, where its parts are the
    records."""
    if not isinstance(value, dict):
        return None
    for key in _LISTS:
        if _is_list_of_objects(value.get(key)):
            return _with_list(key)
    return _with_keys() if len(value) > 1 and _are_objects(value) else None


def form_of_columns(text: str, *, is_cut: bool) -> Form | None:
    """The form of a file that is one JSON object with a column under each key, as pandas writes a
    table where it is told nothing else; `text` may be its beginning alone (`is_cut`)."""
    if not _FIRST_COLUMN.match(text):
        return None
    value = _loaded(text)
    if value is None and not is_cut:
        return None
    columns = value.values() if value else ()
    if not all(isinstance(column, dict) and all(map(str.isdecimal, column)) for column in columns):
        return None
    return Form(
        what="holds one JSON object with a column of a table under each key",
        command=_LINE_PER_ROW,
    )


def form_of_only_line(value: object) -> Form | None:
    """The form of a file that is one JSON object on one line, where its parts are the records and
    it can be none itself, whatever keys are looked for: it has no text but in the objects of a
    list, and these are no messages, or under numbers."""
    if not isinstance(value, dict):
        return None
    if value and _are_objects(value) and all(map(str.isdecimal, value)):
        return _with_keys()
    keys = [key for key, part in value.items() if isinstance(part, str | dict | list)]
    if len(keys) != 1 or keys[0] not in _LISTS or not _is_list_of_objects(value[keys[0]]):
        return None
    has_messages = any(row.keys() & _SPEAKERS for row in value[keys[0]])
    return None if has_messages else _with_list(keys[0])


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _are_objects(value: dict[str, object]) -> bool:
    return all(isinstance(part, dict) for part in value.values())


def _with_keys() -> Form:
    return Form(
        what="holds one JSON object with a record under each key",
        command=LINE_PER_ITEM.format(f"{WHOLE_JSON}.values()"),
    )


def _with_list(key: str) -> Form:
    return Form(
        what=f"holds one JSON object with its records under {key!r}",
        command=LINE_PER_ITEM.format(f'{WHOLE_JSON}["{key}"]'),
    )


def _has_comma(line: str) -> bool:
    bare = line.rstrip()
    return bare.endswith(",") and _loaded(bare[:-1]) is not None


def _of_objects(first: str) -> Form | None:
    """Objects, but with something more or less than a line end between them."""
    parts = first.split("\r")
    if len(parts) > 1 and _loaded(parts[0]) is not None:
        return Form(what=CARRIAGE_RETURNS, command=LINE_FEEDS)
    try:
        _, end = json.JSONDecoder().raw_decode(first)
    except (ValueError, RecursionError):
        return _of_raw_characters(first) or _of_python(first)
    rest = first[end:].strip()
    if rest.startswith("{"):
        return Form(what="holds several objects on a line", command="jq -c .")
    return None


def _of_raw_characters(first: str) -> Form | None:
    """JSON but for tabs and the like in its strings as they are."""
    try:
        json.loads(first, strict=False)
    except (ValueError, RecursionError):
        return None
    found = next(character for character in first if character < " ")
    return Form(
        what=f"has control characters inside its strings, such as {found!r}, that are not escaped",
        command=_ESCAPED_LINES,
    )


def _of_python(first: str) -> Form | None:
    try:
        value = ast.literal_eval(first)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(value, dict):
        return None
    return Form(what="holds Python's dicts, which are no JSON", command=_PYTHON_LINES)


def _of_table(lines: list[str]) -> Form | None:
    """CSV or TSV: as many fields in every row as in the head."""
    for delimiter, written, name in (("\t", "\\t", "TSV"), (",", ",", "CSV"), (";", ";", "CSV")):
        try:
            rows = list(csv.reader(lines, delimiter=delimiter))
        except csv.Error:
            continue
        # The last may be cut, in the middle of a quoted text.
        whole = rows[:-1] if len(rows) > 2 else rows
        if len(whole) > 1 and len(whole[0]) > 1 and len({len(row) for row in whole}) == 1:
            return Form(
                what=f"is a {name} table with the columns {', '.join(whole[0])[:_SHOWN]}",
                command=_TABLE_ROWS.format(written),
            )
    return None


def _loaded(line: str) -> dict[str, object] | None:
    """The object that the line is."""
    if not line.lstrip("\ufeff \t\r").startswith("{"):
        return None
    try:
        value = json.loads(line.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_json(text: str) -> bool:
    """Whether the whole text is one JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True

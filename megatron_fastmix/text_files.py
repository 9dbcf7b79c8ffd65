"""The one reader of text files and the one reader of JSON: what is damaged or of another kind ends
in a message that names the file, the place and what to do, never in another exception.

Only lines of a corpus are read elsewhere (`corpus.documents.records`), as errors in them may be
skipped.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any, NoReturn

from megatron_fastmix.errors import DataError, FastMixError

WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""How text begins that is not UTF-8, and what it is. The longer marks begin with the shorter."""


_UNMARKED = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
_LEAST_NULS = 0.05
"""Share of bytes that are 0 in text of two bytes a character: spaces and line breaks have one."""


POINTER_HEAD = b"version https://git-lfs.github.com/"
"""How a file begins that Git LFS has put in the place of a large one."""


class RepeatedKeyError(ValueError):
    """A key that stands twice in one JSON object."""


def wide_encoding(head: bytes) -> tuple[str, str] | None:
    """The encoding of text in UTF-16 or UTF-32 by its beginning, and by what it is told; None for
    other text. Without a mark it is told by its zeros, which UTF-8 text has not."""
    for mark, encoding in WIDE_MARKS:
        if head.startswith(mark):
            return encoding, "by its byte-order mark"
    zeros = head.count(0)
    if zeros < 2 or zeros < _LEAST_NULS * len(head):
        return None
    for encoding in _UNMARKED:
        # All zeros lie in the same half of a character.
        if "16" in encoding and head[int(encoding.endswith("LE")) :: 2].count(0) != zeros:
            continue
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            continue
        if text and all(char.isprintable() or char.isspace() for char in text[:1000]):
            return encoding, "by its zeros, without a byte-order mark"
    return None


def decode_text(content: bytes) -> str:
    """UTF-8 text, without the byte-order mark that some editors put first.

    Raises `ValueError` with the reason; text in UTF-16 or UTF-32 is named as that.
    """
    wide = wide_encoding(content)
    if wide:
        raise ValueError(
            f"the text is in {wide[0]}, {wide[1]}; convert it to UTF-8 with "
            f"`iconv -f {wide[0]} -t UTF-8`"
        )
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1}") from None


def read_text(
    path: str | Path,
    what: str,
    *,
    fix: str = "give another file or make it again",
    error: type[FastMixError] = DataError,
) -> str:
    """The text of a file. Raises `error` where it is missing, unreadable or no UTF-8.

    `what` is what the file should be ("the hostfile"), `fix` what to do; both are for the message.
    """
    return read_file(path, what, fix=fix, error=error)[1]


def read_file(
    path: str | Path,
    what: str,
    *,
    fix: str = "give another file or make it again",
    error: type[FastMixError] = DataError,
) -> tuple[bytes, str]:
    """As `read_text`: the bytes of the file, and its text."""
    content = read_bytes(path, what, fix=fix, error=error)
    try:
        return content, decode_text(content)
    except ValueError as problem:
        raise error(f"{path}: cannot read {what}: {problem}; {fix}") from None


def read_bytes(
    path: str | Path,
    what: str,
    *,
    fix: str = "give another file or make it again",
    error: type[FastMixError] = DataError,
) -> bytes:
    """The bytes of a file. Raises `error` where it is missing or unreadable."""
    try:
        content = Path(path).read_bytes()
    except OSError as problem:
        raise error(f"{path}: cannot read {what}: {problem.strerror}; {fix}") from None
    except ValueError as problem:  # a path with a NUL in it
        raise error(f"{path!r}: cannot read {what}: {problem}; {fix}") from None
    check_no_pointer(path, content, error)
    return content


def check_no_pointer(
    path: str | Path, head: bytes | None = None, error: type[FastMixError] = DataError
) -> None:
    """Raises `error` where the file, whose beginning may be known as `head`, is a pointer of Git
    LFS."""
    if head is None:
        with open(path, "rb") as file:
            head = file.read(len(POINTER_HEAD))
    if head.startswith(POINTER_HEAD):
        raise error(f"{path}: is a pointer of Git LFS, not the file; run `git lfs pull`")


def parse_json(text: str, *, constants: bool = False) -> Any:
    """One JSON value. Raises `ValueError` with the reason and its place.

    Refused besides malformed JSON: a key that stands twice in one object, of which Python keeps the
    last in silence; numbers that no program reads; text that is no Unicode; and NaN and Infinity,
    which are no JSON, unless `constants`.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=unique_keys,
            parse_constant=None if constants else _refuse_constant,
        )
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("not valid JSON: a text in it holds half a surrogate pair") from None
    return value


def read_json(
    path: str | Path,
    what: str,
    *,
    fix: str = "give another file or make it again",
    error: type[FastMixError] = DataError,
    constants: bool = False,
) -> Any:
    """The value in a JSON file. Raises `error` for one that cannot be read as such."""
    text = read_text(path, what, fix=fix, error=error)
    try:
        return parse_json(text, constants=constants)
    except ValueError as problem:
        raise error(f"{path}: {problem}; {fix}") from None


def read_json_object(
    path: str | Path,
    what: str,
    *,
    fix: str = "give another file or make it again",
    error: type[FastMixError] = DataError,
    constants: bool = False,
) -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object."""
    value = read_json(path, what, fix=fix, error=error, constants=constants)
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}; {fix}")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, for `json.loads`. Raises `RepeatedKeyError`."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RepeatedKeyError(f"the key {twice!r} occurs twice in one object; keep one")
    return values


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"holds {constant}, which JSON does not know")

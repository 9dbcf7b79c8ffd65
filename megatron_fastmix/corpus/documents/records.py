"""From a record to a document: which text it holds, and which part of it counts in the loss."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_fastmix.corpus.documents.chat_template import ChatTemplate
from megatron_fastmix.corpus.documents.content_parts import MEDIA, check_no_media
from megatron_fastmix.corpus.documents.conversations import (
    check_nothing_else,
    check_text,
    conversation_document,
)
from megatron_fastmix.corpus.documents.document import Document, FieldValue
from megatron_fastmix.corpus.documents.nothing_lost import RECORD_VARIABLES
from megatron_fastmix.corpus.documents.record_types import (
    KEYS,
    RecordType,
    needs_turns,
    pair,
    pair_turns,
    sharegpt_turns,
    with_system,
)
from megatron_fastmix.corpus.documents.tool_forms import parsed, without_fillers
from megatron_fastmix.corpus.reading.inputs import InputFormat, expand_inputs
from megatron_fastmix.corpus.reading.readers import Record, iter_chunks
from megatron_fastmix.errors import DataError
from megatron_fastmix.text_files import RepeatedKeyError, unique_keys

__all__ = ["Document", "RecordParser", "RecordType", "read_documents"]

_OF_CONVERSATION = (
    *RECORD_VARIABLES,
    *MEDIA,
    *("system", "history", "mask", "chat_template_kwargs"),
)
"""Keys that belong to a conversation, beside its messages or its prompt and answer."""


@dataclass(frozen=True, kw_only=True)
class RecordParser:
    """Callable from record to `Document`; None for a blank line.

    Raises `ValueError` with the reason where a record is no document. Keys may be dotted for a
    nested value; a key that itself holds dots wins.
    """

    record_type: RecordType = "text"
    json_key: str = "text"
    """Key of the text, or for `messages` and `sharegpt` of the list where it is not `text`."""
    json_keys: tuple[str, ...] = ()
    """Keys that hold the parts of the record type, in the order of `record_types.KEYS`; none for
    the usual ones."""
    chat_template: ChatTemplate | None = None
    """How conversations become text; None writes a question and its answer line by line, and
    `role: content` for messages."""
    control_tokens: Collection[str] = ()
    """What becomes one token of the tokenizer's where the chat template writes it."""

    field: str | None = None
    """Key of the value that decides which dataset the record goes to, where one does."""

    def __call__(self, record: Record, record_format: InputFormat) -> Document | None:
        if isinstance(record, bytes):
            if record_format != "text" and not record.strip():
                return None
            if record_format != "jsonl":
                if self.field is not None:
                    raise ValueError(f"a plain text has no field {self.field!r}")
                return _plain_document(record, record_format)
            record = known = _parse_json(record)
        elif self.record_type == "text":
            known = record
        else:
            known = {key: without_fillers(value) for key, value in record.items()}
        document = self._document(known)
        if self.field is None:
            return document
        return dataclasses.replace(document, field=_field(record, self.field))

    def field_of(self, record: Record, record_format: InputFormat) -> FieldValue | None:
        """The value of `field` alone; None for a blank line and for plain text. Raises `ValueError`
        as a call does."""
        assert self.field is not None
        if isinstance(record, bytes):
            if record_format != "jsonl" or not record.strip():
                return None
            record = _parse_json(record)
        return _field(record, self.field)

    def _document(self, record: dict[str, Any]) -> Document:
        if self.record_type == "text":
            value = _find(record, self.json_key)
            texts = value if isinstance(value, list) else [value]
            return Document(
                tuple(check_text(text, self.json_key) for text in texts), (True,) * len(texts)
            )
        return self._answers(record)

    def _answers(self, record: dict[str, Any]) -> Document:
        kind, keys = self.record_type, self.keys
        for key in keys:
            if "." in key:
                record = record | _beside(record, key)

        def find(key: str) -> Any:
            return _find(record, key)

        check_no_media(record, [key.partition(".")[0] for key in (*keys, self.field or "")])
        first_answer = 0
        system = self._system(record)
        if kind == "messages":
            turns = with_system(parsed(keys[0], find(keys[0])), system)
        elif kind == "sharegpt":
            turns = with_system(
                sharegpt_turns(parsed(keys[0], find(keys[0])), record.get("mask")), system
            )
        else:
            texts = None if self.chat_template else pair(kind, keys, find)
            if texts is not None and not needs_turns(kind, record, system):
                check_nothing_else(record)
                return Document((texts[0] + "\n", texts[1]), (False, True))
            turns, first_answer = pair_turns(kind, keys, record, find, system)
        return conversation_document(
            turns,
            record,
            self.chat_template,
            self.control_tokens,
            first_answer=first_answer,
        )

    def _system(self, record: dict[str, Any]) -> str | None:
        """The record's `system` that becomes the first turn; None where a key of the record type
        names it, or the chat template asks for it as a variable."""
        system = record.get("system")
        if not system or any(key.partition(".")[0] == "system" for key in self.keys):
            return None
        asked = self.chat_template.variables(record) if self.chat_template else {}
        if "system" in asked:
            return None
        if not isinstance(system, str):
            raise ValueError(
                f"the value of 'system' is {type(system).__name__}, not the text of a system turn; "
                "remove the key to leave it out"
            )
        return system

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that hold the parts of the record type."""
        if self.json_keys:
            return self.json_keys
        if len(KEYS[self.record_type]) == 1 and self.json_key != "text":
            return (self.json_key,)
        return KEYS[self.record_type]

    @property
    def columns(self) -> list[str]:
        """Parquet columns that may hold what is looked for."""
        keys = [*self.keys, *(key.partition(".")[0] for key in self.keys)]
        if self.field is not None:
            keys += [self.field, self.field.partition(".")[0]]
        if self.record_type != "text":
            keys += _OF_CONVERSATION
            if self.chat_template is not None:
                keys += sorted(self.chat_template.record_variables)
        return list(dict.fromkeys(keys))


def read_documents(
    path: str | Path, json_key: str = "text", input_format: InputFormat = "auto"
) -> Iterator[str]:
    """Texts of the documents of a file, folder or glob in order, sentences joined by line breaks.

    Raises `DataError` with file and line for a malformed one.
    """
    parser = RecordParser(json_key=json_key)
    for file in expand_inputs([str(path)], input_format):
        number = 0
        for chunk in iter_chunks(file, input_format, parser.columns):
            for record in chunk.records():
                number += 1
                try:
                    document = parser(record, chunk.record_format)
                except ValueError as error:
                    raise DataError(
                        f"{file}:{number}: {error}; correct or remove the line"
                    ) from None
                if document is not None:
                    yield "\n".join(document.parts)


def _plain_document(record: bytes, record_format: InputFormat) -> Document:
    try:
        text = record.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1}") from None
    if record_format == "lines":
        text = text.removesuffix("\r")  # part of the line's end, as in a file from Windows
    elif "\n\ufeff" in text:
        text = text.replace("\n\ufeff", "\n")  # the mark of a file that was put behind another
    text = text.removeprefix("\ufeff")  # likewise, and a second one before a text
    return Document((text,), (True,))


def _parse_json(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=unique_keys)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        if b"\0" in line:  # by which `json` may have taken the line for UTF-32
            raise ValueError(
                "holds NUL bytes, as a copy that was cut off leaves; copy or make the file again"
            ) from None
        if isinstance(error, UnicodeDecodeError):
            raise ValueError(f"invalid UTF-8 at byte {error.start + 1} of the line") from None
        raise ValueError(f"malformed JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("malformed JSON: nested too deeply") from None
    except RepeatedKeyError:
        raise
    except ValueError:  # Python reads integers of up to 4,300 digits
        raise ValueError("malformed JSON: holds a number that is too long to be read") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _field(record: dict[str, Any], key: str) -> FieldValue:
    value = _find(record, key)
    if not isinstance(value, str | int | float):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"the field {key!r} that the dataset is split by holds {kind}")
    return value


def _beside(record: dict[str, Any], key: str) -> dict[str, Any]:
    """What of the conversation stands beside the value of a dotted `key`, and not in the record."""
    found: Any = record
    for part in () if key in record else key.split(".")[:-1]:
        found = found.get(part) if isinstance(found, dict) else None
    values = found if isinstance(found, dict) else {}
    return {k: values[k] for k in _OF_CONVERSATION if values.get(k) and not record.get(k)}


def _find(record: dict[str, Any], key: str) -> Any:
    if key in record:
        return record[key]
    found: Any = record
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            keys = ", ".join(
                each if each.isprintable() else repr(each) for each in list(record)[:10]
            )
            raise ValueError(f"no key {key!r}; the record has: {keys}")
        found = found[part]
    return found

"""From a record to a document: which text it holds, and which part of it counts in the loss."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_fastmix.corpus.chat_template import ChatTemplate
from megatron_fastmix.corpus.inputs import InputFormat, expand_inputs
from megatron_fastmix.corpus.readers import Record, iter_chunks
from megatron_fastmix.errors import DataError

RecordType = Literal["text", "question_answer", "prompt_completion", "messages"]
"""`text` is for pre-training; the others count only the answers in the loss."""

_PAIRS = {"question_answer": ("question", "answer"), "prompt_completion": ("prompt", "completion")}
_ROLES = {"system", "user", "assistant", "tool"}


@dataclass(frozen=True)
class Document:
    """Parts of text in order; `in_loss` says for each whether its tokens count in the loss.

    Parts of a pre-training document are sequences of their own (Megatron's sentences); those of
    an answer-only document make one sequence.
    """

    parts: tuple[str, ...]
    in_loss: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class RecordParser:
    """Callable from record to `Document`; None for a blank line.

    Raises `ValueError` with the reason where a record is no document. Keys may be dotted for a
    nested value; a key that itself holds dots wins.
    """

    record_type: RecordType = "text"
    json_key: str = "text"
    """Key of the text, or for `messages` of the messages where it is not `text`."""
    chat_template: ChatTemplate | None = None
    """How conversations become text; None writes `role: content` line by line."""

    def __call__(self, record: Record, record_format: InputFormat) -> Document | None:
        if isinstance(record, bytes):
            if record_format != "text" and not record.strip():
                return None
            if record_format != "jsonl":
                return _plain_document(record, record_format)
            record = _parse_json(record)
        if self.record_type == "text":
            value = _find(record, self.json_key)
            texts = value if isinstance(value, list) else [value]
            return Document(
                tuple(_text(text, self.json_key) for text in texts), (True,) * len(texts)
            )
        if self.record_type == "messages":
            return _conversation(_find(record, self._messages_key), self.chat_template)
        first, second = _PAIRS[self.record_type]
        prompt, answer = (_text(_find(record, key), key) for key in (first, second))
        if not answer.strip():
            raise ValueError(f"the value of {second!r} is empty, so nothing would be learned")
        return Document((prompt + "\n", answer), (False, True))

    @property
    def columns(self) -> list[str]:
        """Parquet columns that may hold what is looked for."""
        if self.record_type in _PAIRS:
            return list(_PAIRS[self.record_type])
        key = self._messages_key if self.record_type == "messages" else self.json_key
        return list(dict.fromkeys([key, key.partition(".")[0]]))

    @property
    def _messages_key(self) -> str:
        return "messages" if self.json_key == "text" else self.json_key


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
    return Document((text,), (True,))


def _parse_json(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1} of the line") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("malformed JSON: nested too deeply") from None
    except ValueError:  # Python reads integers of up to 4,300 digits
        raise ValueError("malformed JSON: holds a number that is too long to be read") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _find(record: dict[str, Any], key: str) -> Any:
    if key in record:
        return record[key]
    found: Any = record
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            keys = ", ".join(map(str, list(record)[:10]))
            raise ValueError(f"no key {key!r}; the record has: {keys}")
        found = found[part]
    return found


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the value of {key!r} is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"the value of {key!r} holds half a surrogate pair") from None
    return value


def _conversation(messages: Sequence[Any], template: ChatTemplate | None) -> Document:
    """By the template or `role: content` line by line; only the assistant's part is learned."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of {role, content}, and not empty")
    parts: list[str] = []
    in_loss: list[bool] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise ValueError(f"message {number} is {type(message).__name__}, not an object")
        role, content = _find(message, "role"), _text(_find(message, "content"), "content")
        if role not in _ROLES:
            raise ValueError(
                f"message {number} has the role {role!r}; known are {', '.join(sorted(_ROLES))}"
            )
        last = number == len(messages)
        parts += [f"{role}: ", content if last else content + "\n"]
        in_loss += [False, role == "assistant"]
    if not any(in_loss):
        raise ValueError("no message of the assistant, so nothing would be learned")
    if template is not None:
        parts, in_loss = template.parts(messages)
    return Document(tuple(parts), tuple(in_loss))

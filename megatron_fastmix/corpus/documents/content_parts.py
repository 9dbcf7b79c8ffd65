"""Messages whose content is a list of parts, `[{"type": "text", "text": ...}, ...]`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

Turn = dict[str, Any]
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Keys under which LLaVA, LLaMA-Factory and ms-swift keep what the text refers to as `<image>`."""
_REFERENCES = ("<image>", "<video>", "<audio>")
_MARK = "\ufdd6part{}\ufdd7"
"""Its ends are never assigned by Unicode, so that no text has them."""


def check_parts(content: Sequence[Any], number: int) -> None:
    """Raises `ValueError` where a part of message `number` is anything but text."""
    for part in content:
        known = isinstance(part, dict) and part.get("type") == "text"
        if not known or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(
                f"message {number}: the content has a part that is no text ({kind!r:.40}), and "
                "this learns from text alone"
            )


def check_no_media(
    values: Mapping[str, Any], others: Collection[str] = (), *, where: str = "the record"
) -> None:
    """Raises `ValueError` for images and the like of a record, or of a message (`where`), by their
    keys in `MEDIA` but for `others`, which are asked for as text. One name or address to which no
    text refers is metadata."""
    for key in MEDIA:
        value = values.get(key)
        if key in others or not _holds_any(value):
            continue
        if isinstance(value, str) and not _refers(values):
            continue
        raise ValueError(
            f"{where} has {key!r}, and this learns from text alone; remove the key to leave it out"
        )


def _holds_any(value: Any) -> bool:
    """Whether anything is there but nulls, NaN and empty texts, as of a record without an image."""
    if isinstance(value, dict):
        return any(map(_holds_any, value.values()))
    if isinstance(value, list):
        return any(map(_holds_any, value))
    return value is not None and value != "" and value == value


def _refers(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_refers, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and any(mark in value for mark in _REFERENCES)


def joined(content: Sequence[Any]) -> str:
    """The text of all parts, one after the other, as templates that know parts write it."""
    return "".join(part["text"] for part in content)


def texts_of(content: Any) -> list[str]:
    """The text of a message's content, or of each of its parts."""
    if isinstance(content, list):
        return [part["text"] for part in content]
    return [content] if isinstance(content, str) else []


def for_template(turns: list[Turn], render: Callable[[list[Turn]], str]) -> list[Turn]:
    """`turns`, with text in place of the parts that the template does not take apart.

    Templates for text alone print the list as Python writes it, or fail. So parts are marked under
    a key of no meaning: whoever prints it prints the list. `render` raises `ValueError` where the
    template fails.
    """
    if not any(isinstance(turn.get("content"), list) for turn in turns):
        return turns
    marked = [
        {**turn, "content": [{**part, "mark": _MARK.format(number)} for part in turn["content"]]}
        if isinstance(turn.get("content"), list)
        else turn
        for number, turn in enumerate(turns)
    ]
    try:
        text: str | None = render(marked)
    except ValueError:
        text = None
    return [
        {**turn, "content": joined(turn["content"])}
        if isinstance(turn.get("content"), list) and _is_printed(text, number)
        else turn
        for number, turn in enumerate(turns)
    ]


def _is_printed(text: str | None, number: int) -> bool:
    """Whether the mark of a turn came out, as it is or escaped; also where nothing came out."""
    mark = _MARK.format(number)
    return text is None or any(form in text for form in (mark, repr(mark)[1:-1]))

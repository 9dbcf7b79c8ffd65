"""Where the answers stand in a rendered conversation, for templates that do not mark them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

_WORD = "\ufdd4answer\ufdd5"
"""Stands for an answer. Its ends are never assigned by Unicode, so that no text has them."""

_PROMPT_ENDS = (16, 8, 4)
"""Characters by which the end of a prompt is known again, the more the surer."""

_LIKE, _WITHIN, _NEAR = 4, 16, 64
"""Characters by which the prompt and the answered prompt must end alike, or the end of the latter
be near that of the former, before it is asked whether each text ends with a prompt."""


class Render(Protocol):
    """The text of some messages. Raises `ValueError` where the template fails."""

    def __call__(self, messages: Sequence[dict[str, Any]], *, ask: bool = False) -> str: ...


def answer_places(
    render: Render, messages: Sequence[dict[str, Any]], text: str, first_answer: int
) -> list[tuple[int, int]]:
    """Characters [start, stop) of `text`, the rendered `messages`, that the assistant says.

    An answer is what a turn of the assistant adds to the prompt that asks for it
    (`add_generation_prompt`), its end-of-turn token included. Raises `ValueError` where it cannot
    be told apart.
    """
    answers: list[tuple[int, int]] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or number < first_answer:
            continue
        done = answers[-1][1] if answers else 0
        place = _added(render, messages, text, number) or _exchanged(
            render, messages, text, number, done
        )
        if place is None or place[0] < done:
            raise ValueError(
                f"the chat template changes earlier text at message {number + 1}, so that its "
                "answer cannot be told apart; put {% generation %} and {% endgeneration %} around "
                "the answer in the template"
            )
        answers.append(place)
    return answers


def _added(
    render: Render, messages: Sequence[dict[str, Any]], text: str, number: int
) -> tuple[int, int] | None:
    """What the turn adds, where the template renders it alike once the conversation goes on."""
    try:
        asked = render(messages[:number], ask=True)
        if number == 0 and asked == render([]):  # a prompt inside of the loop over the messages
            return None
        last = number == len(messages) - 1
        answered = text if last else render(messages[: number + 1])
    except ValueError:  # such as a conversation that the assistant begins
        return None
    if not answered.startswith(asked):
        return None
    alike = asked[-_LIKE:] == answered[-_LIKE:] or answered[-_WITHIN:] in asked[-_NEAR:]
    if alike and _always_asks(render, messages[:number]):
        raise ValueError(
            "the chat template ends each conversation with the prompt for another answer, whether "
            "asked for it or not, so that the ends of answers cannot be told apart; put "
            "{% if add_generation_prompt %} and {% endif %} around that prompt in the template"
        )
    return (len(asked), len(answered)) if text.startswith(answered) else None


def _always_asks(render: Render, messages: Sequence[dict[str, Any]]) -> bool:
    """Whether the template ends an answered conversation with what is not there once it goes on,
    and takes no notice of `add_generation_prompt`, or adds by it what makes a prompt of that end,
    as Cohere's do. A user's turn then has that end too."""
    answered = [*messages, {"role": "assistant", "content": _WORD}]
    more = [{"role": "user", "content": "x"}]
    try:
        text, asked = render(answered), render(answered, ask=True)
        before, _, end = text.rpartition(_WORD)
        longer = render([*answered, *more]).rpartition(_WORD)[2]
        prompt = end[_common_length(end, longer) :]
        if text == asked or not prompt.strip():
            return bool(prompt.strip())
        added = asked[len(text) :] if asked.startswith(text) else _WORD
        if not before.endswith(prompt + added):
            return False
        return not render([*messages, *more]).startswith(render(messages).rstrip())
    except ValueError:
        return False


def _exchanged(
    render: Render, messages: Sequence[dict[str, Any]], text: str, number: int, done: int
) -> tuple[int, int] | None:
    """What gives way where another word is said in the turn's place, and the turn's ends around it.

    For templates that render a turn otherwise once the conversation goes on: they take the
    reasoning out of earlier turns, or move the system's message to the last one.
    """
    other = {"role": "assistant", "content": _WORD}
    try:
        exchanged = render([*messages[:number], other, *messages[number + 1 :]])
        alone = render([*messages[:number], other])
    except ValueError:
        return None
    if exchanged.count(_WORD) != 1 or alone.count(_WORD) != 1:
        return None
    before, _, after = exchanged.partition(_WORD)
    if not text.endswith(after):
        return None
    stop = len(text) - len(after)
    start = min(_common_length(text, before), stop)
    for header in _headers(render, messages[:number]):
        found = text.rfind(header, done, start) if header else -1
        if found >= 0:
            start = found + len(header)
            break
    end = alone.partition(_WORD)[2]
    for tail in (end, end.rstrip()):
        if after.startswith(tail):
            return start, stop + len(tail)
    return start, stop


def _headers(render: Render, messages: Sequence[dict[str, Any]]) -> list[str]:
    """What asks for an answer after `messages`; ends of the prompt, if any, where nothing does."""
    try:
        asked, before = render(messages, ask=True), render(messages)
    except ValueError:
        return []
    added = asked[len(before) :] if asked.startswith(before) else ""
    if added or not messages:
        return [added]
    return [asked[-length:] for length in _PROMPT_ENDS]


def _common_length(one: str, other: str) -> int:
    """Characters that both texts begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low

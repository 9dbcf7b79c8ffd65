"""Conversations become documents: nothing of one is lost, and only answers are learned."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from megatron_fastmix.corpus.documents.chat_template import ChatTemplate
from megatron_fastmix.corpus.documents.content_parts import (
    check_no_media,
    check_parts,
    for_template,
    joined,
)
from megatron_fastmix.corpus.documents.document import Document
from megatron_fastmix.corpus.documents.nothing_lost import (
    CALLS,
    REASONING,
    RECORD_VARIABLES,
    TOOLS,
    check_nothing_lost,
)
from megatron_fastmix.corpus.documents.tool_forms import (
    parsed,
    tool_list,
    with_arguments,
    with_calls,
)

ROLES = {"system", "user", "assistant", "tool"}
"""Known without a chat template; a template may know others."""
_LEARNED = ("weight", "train", "loss", "loss_mask")
"""Keys of OpenAI, Axolotl and ms-swift by which an answer is learned or, at 0 or false, is not."""
_NEEDS_TEMPLATE = (
    "which needs a chat template (--chat-template); give one, or remove the key to leave them out"
)
_OPEN, _CLOSE = "\ufdd2", "\ufdd3"
"""Never assigned by Unicode, so that no text has them."""


def conversation_document(
    messages: Any,
    record: Mapping[str, Any],
    template: ChatTemplate | None,
    control_tokens: Collection[str] = (),
    *,
    first_answer: int = 0,
) -> Document:
    """The text of a conversation with its answers, by the template or `role: content` by line.

    `record` holds what the template may ask for beside the messages, such as `tools`.
    `control_tokens` become tokens where the template writes them. Messages before `first_answer`
    are no answers, nor are those whose `weight`, `train`, `loss` or `loss_mask` is 0 or false.
    Raises `ValueError` where there is nothing to learn, or something of the conversation would be
    lost, or what others say would be learned.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of {role, content}, and not empty")
    turns = [_turn(message, number, template) for number, message in enumerate(messages, start=1)]
    learned = _learned(turns, first_answer)
    if template is None:
        return _plain(turns, record, learned)
    values = {**record, **_extra(record)}
    given = {name: _variable(name, values.pop(name, None)) for name in RECORD_VARIABLES}
    variables = template.variables({**values, **{k: v for k, v in given.items() if v}})
    for name, value in given.items():
        if value and name not in variables:
            raise ValueError(
                f"the record has {name!r}, for which the chat template has no place; use a "
                "template that renders them, or remove the key to leave them out"
            )
    turns = _as_taken(turns, template, variables)
    text, answers = template.render(turns, variables, first_answer=first_answer)
    check_nothing_lost(template, turns, variables, text, first_answer)
    if not all(learned.values()):
        if len(answers) != len(learned):
            raise ValueError(
                f"the chat template marks {len(answers)} answers for {len(learned)} messages of "
                "the assistant, so that those not to be learned cannot be told apart"
            )
        answers = [a for a, flag in zip(answers, learned.values(), strict=True) if flag]
    answers = [(start, stop) for start, stop in answers if stop > start]
    if not any(text[start:stop].strip() for start, stop in answers):
        raise ValueError("the chat template marks no answer, so nothing would be learned")
    controls = _controls(template, turns, variables, text, control_tokens)
    return Document.of_spans(text, answers, controls)


def _as_taken(
    turns: list[dict[str, Any]], template: ChatTemplate, variables: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The turns in the forms that the template takes, where a data set may have another."""

    def render(asked: list[dict[str, Any]]) -> str:
        return template.render_text(asked, variables)

    taken = for_template(turns, render)
    if "arguments" in template.names(variables):  # else they are only a part of what it writes
        taken = with_arguments(taken, render)
    if all("content" in turn for turn in turns):
        return taken
    try:
        render(taken)
    except ValueError:  # it may join the content of a call to other text
        return _as_taken([{"content": "", **turn} for turn in turns], template, variables)
    return taken


def _learned(turns: list[dict[str, Any]], first_answer: int) -> dict[int, bool]:
    """By number of the turn, whether an answer is learned; takes the keys that tell so out of the
    turns. Raises `ValueError` for other values, and where nothing is learned."""
    learned = {}
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        flags = {key: turn.pop(key) for key in _LEARNED if key in turn}
        for key, flag in flags.items():
            if not isinstance(flag, int | float) or flag not in (0, 1):
                raise ValueError(
                    f"message {number + 1}: {key!r} is {flag!r}; an answer is learned (1 or true) "
                    "or not (0 or false)"
                )
        if number >= first_answer:
            learned[number] = all(flags.values())
    if not learned:
        raise ValueError("no message of the assistant, so nothing would be learned")
    if not any(learned.values()):
        raise ValueError("no message of the assistant is to be learned, by the keys that mark it")
    return learned


def check_text(value: Any, key: str) -> str:
    """`value` as text that has UTF-8. Raises `ValueError` where it is none."""
    if not isinstance(value, str):
        raise ValueError(f"the value of {key!r} is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"the value of {key!r} holds half a surrogate pair") from None
    return value


def check_nothing_else(record: Mapping[str, Any]) -> None:
    """Raises `ValueError` for tools and documents in a record, or in its `chat_template_kwargs`,
    that becomes text without a chat template: that has no place for them."""
    for values in (record, _extra(record)):
        for name in RECORD_VARIABLES:
            if _variable(name, values.get(name)):
                raise ValueError(f"the record has {name!r}, {_NEEDS_TEMPLATE}")


def _extra(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the record's `chat_template_kwargs` holds."""
    extra = parsed("chat_template_kwargs", record.get("chat_template_kwargs"))
    return extra if isinstance(extra, dict) else {}


def _turn(message: Any, number: int, template: ChatTemplate | None) -> dict[str, Any]:
    """A message as `transformers` hands it to templates: without the keys that are null."""
    if not isinstance(message, dict):
        raise ValueError(f"message {number} is {type(message).__name__}, not an object")
    turn = {key: value for key, value in message.items() if value is not None}
    role = turn.get("role")
    if not isinstance(role, str):
        raise ValueError(f"message {number} has no key 'role'; it has: {', '.join(map(str, turn))}")
    if template is None and role not in ROLES:
        raise ValueError(
            f"message {number} has the role {role!r}; known are {', '.join(sorted(ROLES))}, and "
            "others with a chat template that renders them"
        )
    check_no_media(turn, where=f"message {number}")
    turn = with_calls(turn, number)
    calls = role == "assistant" and any(turn.get(key) for key in CALLS)
    content = turn.get("content")
    if content is None:
        if "content" in message and not calls:
            raise ValueError(f"message {number}: the value of 'content' is null")
        if not calls:
            keys = ", ".join(map(str, turn))
            raise ValueError(f"message {number} has no key 'content'; it has: {keys}")
    elif isinstance(content, list):
        check_parts(content, number)
        if template is None or not content:  # which a template may print as `[]`
            turn["content"] = joined(content)
    elif not isinstance(content, str):
        kind = type(content).__name__
        raise ValueError(f"message {number}: the value of 'content' is {kind}, not text")
    else:
        check_text(content, "content")
    if template is None:
        told = [key for key in (*CALLS, *REASONING) if turn.get(key)]
        told += [key for key in TOOLS if tool_list(key, turn.get(key))]
        if told:
            raise ValueError(f"message {number} has {told[0]!r}, {_NEEDS_TEMPLATE}")
    reasoning = next((turn[key] for key in REASONING if turn.get(key)), None)
    if reasoning is not None:  # under each name that a template may know
        turn = {"thinking": reasoning, **turn, "reasoning_content": reasoning}
    return turn


def _plain(
    turns: list[dict[str, Any]], record: Mapping[str, Any], learned: Mapping[int, bool]
) -> Document:
    check_nothing_else(record)
    parts, in_loss = [], []
    for number, turn in enumerate(turns):
        last = number == len(turns) - 1
        parts += [f"{turn['role']}: ", turn["content"] + ("" if last else "\n")]
        in_loss += [False, learned.get(number, False)]
    if not any(flag and part.strip() for part, flag in zip(parts, in_loss, strict=True)):
        raise ValueError("every answer to be learned is empty, so nothing would be learned")
    return Document(tuple(parts), tuple(in_loss))


def _variable(name: str, value: Any) -> Any:
    if name in TOOLS:
        return tool_list(name, value)
    return parsed(name, value) if name == "documents" else value


def _controls(
    template: ChatTemplate,
    turns: Sequence[dict[str, Any]],
    variables: Mapping[str, Any],
    text: str,
    tokens: Collection[str],
) -> list[tuple[int, int]]:
    """Characters [start, stop) of the control tokens that the template wrote."""
    if not any(token in text for token in tokens):
        return []
    longest_first = sorted(tokens, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    found = [match.span() for match in pattern.finditer(text)]
    marked_turns, marked_variables = _marked((list(turns), dict(variables)), pattern)
    if (marked_turns, marked_variables) == (list(turns), dict(variables)):
        return found
    # The record's own text has some: it is rendered with them marked, to tell them apart.
    marked = template.render_text(marked_turns, marked_variables)
    if marked.replace(_OPEN, "").replace(_CLOSE, "") != text:
        raise ValueError(
            "the text holds control tokens of the tokenizer, and the chat template takes it apart "
            "there; remove them from the text"
        )
    own, depth, at = set(), 0, 0
    for character in marked:
        if character in (_OPEN, _CLOSE):
            depth += 1 if character == _OPEN else -1
        else:
            if depth:
                own.add(at)
            at += 1
    return [(start, stop) for start, stop in found if not own & set(range(start, stop))]


def _marked(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        if _OPEN in value or _CLOSE in value:
            raise ValueError("the text holds U+FDD2 or U+FDD3, which are no characters")
        return pattern.sub(f"{_OPEN}\\g<0>{_CLOSE}", value)
    if isinstance(value, dict):
        return {key: _marked(item, pattern) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_marked(item, pattern) for item in value)
    return value

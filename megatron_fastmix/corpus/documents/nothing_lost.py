"""What a chat template does with a conversation: it leaves nothing out, and answers are only what
the assistant says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_fastmix.corpus.documents.chat_template import ChatTemplate
from megatron_fastmix.corpus.documents.content_parts import texts_of
from megatron_fastmix.corpus.documents.tool_forms import tool_list

RECORD_VARIABLES = ("tools", "documents", "functions", "xml_tools", "python_tools")
"""What a record may hold beside its messages that belongs to the conversation; the last two are
SmolLM3's."""
TOOLS = ("tools", "functions")
CALLS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""What a message may hold beside its content, under each name that it may have."""
_PLAN = ("tool_plan",)
"""Cohere's, of a message with calls."""
_THOUGHT_ENDS = "</think>"
"""Up to here a content is reasoning, in data sets that have no key for it."""
_SHAPES = 4096
"""Shapes of conversations remembered; then all are forgotten."""

Turn = dict[str, Any]
_known: dict[Any, _Found | None] = {}


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the template does with conversations of a shape, in words; "" for nothing wrong."""

    lost: str = ""
    learned: str = ""
    """A turn of another than the assistant that is in an answer."""


def check_nothing_lost(
    template: ChatTemplate,
    turns: Sequence[Turn],
    variables: Mapping[str, Any],
    text: str,
    first_answer: int = 0,
) -> None:
    """Raises `ValueError` where a part of the conversation is not in its `text`, or what another
    than the assistant says is in an answer.

    The template is asked what it does with a conversation of this shape: each turn's text gives way
    to a word of its own, which must come out.
    """
    lost = _never_named(template, turns, variables, text)
    found = None if lost else _of_known_shape(template, turns, variables, first_answer)
    if found is not None:
        lost = found.lost
    elif not lost:  # the template looks into the texts; then these must be found as they are
        words = [_first_words(texts_of(turn.get("content"))) for turn in turns]
        lost = _missing(words, turns, text) or _missing_reasoning(
            [next(iter(_first_words([_reasoning(turn)])), "") for turn in turns], turns, text
        )
    if lost:
        raise ValueError(
            f"the chat template leaves out {lost}; use one that renders it, or remove it from the "
            "record"
        )
    if found is not None and found.learned:
        raise ValueError(
            f"the chat template writes {found.learned} inside an answer, so that it would be "
            "learned; put {% generation %} and {% endgeneration %} around what the assistant says "
            "in the template"
        )


def _never_named(
    template: ChatTemplate, turns: Sequence[Turn], variables: Mapping[str, Any], text: str
) -> str:
    """What the template does not even mention, and tools that are not in the text."""
    names = template.names(variables)
    for number, turn in enumerate(turns, start=1):
        for keys in (CALLS, REASONING, _PLAN):
            told = [key for key in keys if turn.get(key)]
            if told and not names & {*told, *(REASONING if keys is REASONING else ())}:
                return f"{told[0]!r} of message {number} ({turn['role']})"
    own = [turn.get(key) for turn in turns for key in TOOLS]
    for tool in (
        t for tools in (variables.get("tools"), *own) for t in tool_list("tools", tools) or ()
    ):
        name = _function(tool).get("name")
        if isinstance(name, str) and name not in text:
            return f"the tool {name!r}"
    return ""


def _of_known_shape(
    template: ChatTemplate,
    turns: Sequence[Turn],
    variables: Mapping[str, Any],
    first_answer: int,
) -> _Found | None:
    """As `_of_shape`, which is asked once for each shape."""
    shape = tuple(
        (
            turn["role"],
            _kind(turn.get("content")),
            bool(_reasoning(turn)),
            len(_calls(turn)),
            *sorted(turn),
        )
        for turn in turns
    )
    switches = {k: v for k, v in variables.items() if k not in RECORD_VARIABLES}
    key = (template, shape, tuple(sorted(variables)), repr(sorted(switches.items())), first_answer)
    if key not in _known:
        if len(_known) >= _SHAPES:
            _known.clear()
        _known[key] = _of_shape(template, turns, variables, first_answer)
    return _known[key]


def _of_shape(
    template: ChatTemplate,
    turns: Sequence[Turn],
    variables: Mapping[str, Any],
    first_answer: int,
) -> _Found | None:
    """What the template does with words in place of the texts; None where it refuses them."""
    words: list[list[str]] = []
    call_words: list[str] = []
    reasons = [f"reasonno{n}x" if _reasoning(turn) else "" for n, turn in enumerate(turns)]
    probes = []
    for number, turn in enumerate(turns):
        content = turn.get("content")
        own = [
            f"turnno{number}p{i}x" if part.strip() else part
            for i, part in enumerate(texts_of(content))
        ]
        words.append([word for word in own if word.strip()])
        if isinstance(content, list):
            turn = {**turn, "content": [{"type": "text", "text": word} for word in own]}
        elif words[-1]:
            thought = f"<think>\n{reasons[number]}\n{_THOUGHT_ENDS}\n\n" if _thought(turn) else ""
            turn = {**turn, "content": thought + own[0]}
        if reasons[number]:
            turn = {**turn, **{key: reasons[number] for key in REASONING if key in turn}}
        calls = []
        for call in _calls(turn):
            call_words.append(f"callno{len(call_words)}x")
            named = {**_function(call), "name": call_words[-1]}
            calls.append({**call, "function": named} if "function" in call else named)
        probes.append({**turn, "tool_calls": calls} if calls else turn)
    try:
        rendered, answers = _rendered(template, probes, variables, first_answer)
    except ValueError:
        return None
    if any(word not in rendered for word in call_words):
        return _Found(lost="a call of 'tool_calls'")
    lost = _missing(words, turns, rendered) or _missing_reasoning(reasons, turns, rendered)
    return _Found(lost=lost, learned=_learned_of_others(words, turns, answers))


def _rendered(
    template: ChatTemplate, turns: list[Turn], variables: Mapping[str, Any], first_answer: int
) -> tuple[str, list[str]]:
    """The text, and its answers where it is for the template's author to say which these are not,
    and they can be told apart."""
    if not template.marks_answers(variables):
        try:
            text, places = template.render(turns, variables, first_answer=first_answer)
            return text, [text[start:stop] for start, stop in places]
        except ValueError:  # it may be that of the record's own texts they can
            pass
    return template.render_text(turns, variables), []


def _missing(words: list[list[str]], turns: Sequence[Turn], text: str) -> str:
    text = text.casefold()
    for number, (turn, each) in enumerate(zip(turns, words, strict=True), start=1):
        if any(word.casefold() not in text for word in each):
            return f"the content of message {number} ({turn['role']})"
    return ""


def _missing_reasoning(words: list[str], turns: Sequence[Turn], text: str) -> str:
    """Of the last answer: templates mean to leave out that of earlier ones, and before a final
    answer that of calls."""
    last = max(number for number, turn in enumerate(turns) if turn["role"] == "assistant")
    if (
        any(turn["role"] == "user" for turn in turns[last:])
        or words[last].casefold() in text.casefold()
    ):
        return ""
    key = next((repr(key) for key in REASONING if turns[last].get(key)), "the reasoning")
    return f"{key} of message {last + 1} (assistant)"


def _learned_of_others(words: list[list[str]], turns: Sequence[Turn], answers: list[str]) -> str:
    learned = "".join(answers).casefold()
    for number, (turn, each) in enumerate(zip(turns, words, strict=True), start=1):
        if turn["role"] != "assistant" and any(word.casefold() in learned for word in each):
            return f"message {number} ({turn['role']})"
    return ""


def _reasoning(turn: Turn) -> str:
    """The turn's reasoning where it is a text with words."""
    value = next((turn[key] for key in REASONING if turn.get(key)), _thought(turn))
    return value if isinstance(value, str) and value.strip() else ""


def _thought(turn: Turn) -> str:
    """The reasoning in the content of an answer that has no key for it."""
    content = turn.get("content")
    if turn["role"] != "assistant" or not isinstance(content, str) or any(map(turn.get, REASONING)):
        return ""
    return content.rpartition(_THOUGHT_ENDS)[0].replace("<think>", "").strip()


def _calls(turn: Turn) -> list[dict[str, Any]]:
    """The turn's calls of functions by name."""
    calls = turn.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    return [call for call in calls if "name" in _function(call)]


def _function(tool: Any) -> dict[str, Any]:
    """A tool or a call of one: an object that holds the function, or is it."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else {}
    return inner if isinstance(inner, dict) else {}


def _first_words(texts: list[str]) -> list[str]:
    """Of each text. Quotes and line breaks, which end a word, may come out escaped."""
    found = (re.search(r"\w+", text) for text in texts)
    return [word[0] for word in found if word]


def _kind(content: Any) -> tuple[bool, ...]:
    """What a template may tell a content by: whether it is a list, and which texts are blank."""
    return (isinstance(content, list), *(not text.strip() for text in texts_of(content)))

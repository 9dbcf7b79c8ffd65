"""Tools and their calls in the forms that data sets have, as chat templates expect them.

Parquet and many data sets hold them as JSON text, OpenAI's format the arguments of a call alone. A
template that writes text as JSON would escape it; one that joins text cannot take objects.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Turn = dict[str, Any]
_KEY = "argumentkey"
"""Stands for a key of arguments, to see how a template writes it."""


def parsed(name: str, value: Any) -> Any:
    """A value that a data set may hold as JSON text. Raises `ValueError` for other text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise ValueError(f"the value of {name!r} is text, but no JSON") from None


def without_fillers(value: Any) -> Any:
    """The value of a Parquet column without the nulls of its structs. There each object has the
    keys of all, so that a call would be learned with null for the arguments of other tools."""
    if isinstance(value, dict):
        return {key: without_fillers(item) for key, item in value.items() if item is not None}
    return [without_fillers(item) for item in value] if isinstance(value, list) else value


def tool_list(name: str, value: Any) -> list[Any] | None:
    """The tools of a record: a list of objects, from JSON text of it, from a list of such texts, or
    from the only tool; None for no tool. Raises `ValueError` for anything else."""
    value = parsed(name, value)
    if isinstance(value, dict) and (value.keys() & {"function", "name"}):
        value = [value]
    if not value:
        return None
    tools = [parsed(name, tool) for tool in value] if isinstance(value, list) else [None]
    if not all(isinstance(tool, dict) for tool in tools):
        kind = "an object" if isinstance(value, dict) else "something"
        raise ValueError(
            f"the value of {name!r} is {kind} other than a list of tools, each an object with its "
            "name and parameters"
        )
    return tools


def with_calls(turn: Turn, number: int) -> Turn:
    """The turn with its `tool_calls` as a list, of objects where they are JSON text. Raises
    `ValueError` for text that is no JSON."""
    if not turn.get("tool_calls"):
        return turn
    name = f"tool_calls of message {number}"
    calls = parsed(name, turn["tool_calls"])
    calls = [calls] if isinstance(calls, dict) else calls
    if isinstance(calls, list):
        calls = [parsed(name, call) for call in calls]
    return {**turn, "tool_calls": calls}


def with_arguments(turns: list[Turn], render: Callable[[list[Turn]], str]) -> list[Turn]:
    """`turns` with the arguments of calls as objects or as JSON text, as the template takes them;
    as they are where it takes both or neither. `render` raises `ValueError` where the template
    fails."""
    forms = {type(f["arguments"]) for f in _functions(turns)} & {str, dict}
    if not forms:
        return turns
    given = str if str in forms else dict
    other = dict if given is str else str
    if len(forms) == 1 and _takes(turns, render, given):
        return turns
    taken = [form for form in (other, given) if _takes(turns, render, form)]
    if not taken:
        return turns
    return [_mapped(turn, lambda value: _as(value, taken[0])) for turn in turns]


def _takes(turns: list[Turn], render: Callable[[list[Turn]], str], form: type) -> bool:
    """Whether the template writes arguments of this form: it neither fails, nor escapes text, nor
    prints an object as Python does."""
    probe = {_KEY: "x"}
    value = probe if form is dict else json.dumps(probe)
    try:
        text = render([_mapped(turn, lambda _: value) for turn in turns])
    except ValueError:
        return False
    return _KEY in text and f'\\"{_KEY}' not in text and f"'{_KEY}'" not in text


def _as(value: Any, form: type) -> Any:
    if form is str and isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if form is dict and isinstance(value, str):
        try:
            found = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, dict) else value
    return value


def _functions(turns: list[Turn]) -> list[dict[str, Any]]:
    """The functions called that have arguments."""
    lists = [turn["tool_calls"] for turn in turns if isinstance(turn.get("tool_calls"), list)]
    calls = [call for each in lists for call in each if isinstance(call, dict)]
    functions = [call.get("function", call) for call in calls]
    return [f for f in functions if isinstance(f, dict) and "arguments" in f]


def _mapped(turn: Turn, change: Callable[[Any], Any]) -> Turn:
    """The turn with its calls' arguments changed."""
    calls = turn.get("tool_calls")
    if not isinstance(calls, list):
        return turn

    def mapped(call: Any) -> Any:
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("arguments"), str | dict):
            return call
        changed = {**inner, "arguments": change(inner["arguments"])}
        return {**call, "function": changed} if "function" in call else changed

    return {**turn, "tool_calls": [mapped(call) for call in calls]}

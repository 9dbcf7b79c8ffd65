"""The kinds of records with answers: which keys each has, and what conversation it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from megatron_fastmix.corpus.documents.conversations import check_text

RecordType = Literal[
    "text", "question_answer", "prompt_completion", "messages", "alpaca", "sharegpt"
]
"""`text` is for pre-training; the others count only the answers in the loss."""

KEYS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "question_answer": ("question", "answer"),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "alpaca": ("instruction", "input", "output"),
    "sharegpt": ("conversations",),
}
"""By record type, the keys that hold its parts, in the order in which --json-keys renames them."""

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""The role by ShareGPT's `from` in lower case: NeMo writes User and Assistant."""

Turns = list[dict[str, Any]]
Find = Callable[[str], Any]
"""A value of the record by its key, possibly dotted. Raises `ValueError` where there is none."""


def pair(record_type: str, keys: tuple[str, ...], find: Find) -> tuple[str, str] | None:
    """Prompt and answer as plain text; None where the prompt or the answer is a conversation."""
    values = [find(key) for key in (keys[0], keys[-1])]
    if record_type == "prompt_completion" and any(isinstance(value, list) for value in values):
        return None
    prompt, answer = (check_text(v, k) for v, k in zip(values, (keys[0], keys[-1]), strict=True))
    if record_type == "alpaca":
        extra = _optional(find, keys[1])
        if extra is not None and check_text(extra, keys[1]).strip():
            prompt = f"{prompt}\n{extra}"
    if not answer.strip():
        raise ValueError(f"the value of {keys[-1]!r} is empty, so nothing would be learned")
    return prompt, answer


def pair_turns(
    record_type: str,
    keys: tuple[str, ...],
    record: Mapping[str, Any],
    find: Find,
    system: str | None = None,
) -> tuple[Turns, int]:
    """The messages of a record with prompt and answer, and the first that may be an answer.

    `system` is the text of the system turn, if any. Raises `ValueError` as `with_system` does, and
    for a history that is no list of pairs.
    """
    texts = pair(record_type, keys, find)
    if texts is None:
        prompt, answer = (
            _as_messages(find(key), key, role)
            for key, role in ((keys[0], "user"), (keys[-1], "assistant"))
        )
        whole = with_system([*prompt, *answer], system)
        return whole, len(whole) - len(answer)
    turns: Turns = []
    if record_type == "alpaca":
        history = record.get("history") or []
        for exchange in history if isinstance(history, list) else [history]:
            if not isinstance(exchange, list) or len(exchange) != 2:
                raise ValueError("history must be a list of [instruction, output]")
            for role, text in zip(("user", "assistant"), exchange, strict=True):
                turns.append({"role": role, "content": check_text(text, "history")})
    turns.append({"role": "user", "content": texts[0]})
    turns.append({"role": "assistant", "content": texts[1]})
    return with_system(turns, system), 0


def with_system(turns: Any, system: str | None) -> Any:
    """`turns` with a first one of the text `system`, if any and it is not there yet; as they are
    where they are no messages. Raises `ValueError` where they begin with another system turn."""
    first = turns[0] if isinstance(turns, list) and turns else None
    if system is None or not isinstance(first, dict):
        return turns
    if first.get("role") != "system":
        return [{"role": "system", "content": system}, *turns]
    if first.get("content") not in (system, [{"type": "text", "text": system}]):
        raise ValueError(
            "the record has 'system', and message 1 is a system turn of another text; remove "
            "one of them, or put both texts into message 1 and remove 'system'"
        )
    return turns


def needs_turns(record_type: str, record: Mapping[str, Any], system: str | None) -> bool:
    """Whether a record has turns that a plain prompt and answer have no place for."""
    return system is not None or (record_type == "alpaca" and bool(record.get("history")))


def sharegpt_turns(conversations: Any, mask: Any = None) -> Turns:
    """Messages of ShareGPT's `[{from, value}, ...]`; `mask` is what NeMo's records name so, the
    speakers that are not learned. Raises `ValueError`, also where that is the assistant."""
    masked = mask.split(",") if isinstance(mask, str) else []
    if any(_role(name.strip()) == "assistant" for name in masked):
        raise ValueError(
            f"the record's mask is {mask!r}, but the assistant is what is learned; "
            "remove the record"
        )
    if not isinstance(conversations, list) or not conversations:
        raise ValueError("conversations must be a list of {from, value}, and not empty")
    turns: Turns = []
    for number, said in enumerate(conversations, start=1):
        if not isinstance(said, dict):
            raise ValueError(f"message {number} is {type(said).__name__}, not an object")
        if said.get("from") is None or "value" not in said:
            if said.get("role") is not None:  # written in the newer way
                turns.append(said)
                continue
            keys = ", ".join(map(str, said))
            raise ValueError(f"message {number} has no key 'from' and 'value'; it has: {keys}")
        role = _role(said["from"])
        if role is None:
            raise ValueError(
                f"message {number} is from {said['from']!r}; known are "
                f"{', '.join(sorted(_SPEAKERS))}"
            )
        rest = {k: v for k, v in said.items() if k not in {"from", "value"}}
        if said["from"].lower() == "function_call":
            turns.append(rest | {"role": role, "tool_calls": _calls(said["value"], number)})
        else:
            turns.append(rest | {"role": role, "content": check_text(said["value"], "value")})
    return turns


def _role(speaker: Any) -> str | None:
    return _SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None


def _calls(value: Any, number: int) -> list[dict[str, Any]]:
    """The call of functions that ShareGPT writes as JSON text: {name, arguments}, or several."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and call.get("name") for call in calls):
        raise ValueError(f"message {number}: the function call is no JSON of name and arguments")
    return [{"type": "function", "function": call} for call in calls]


def _as_messages(value: Any, key: str, role: str) -> Turns:
    if isinstance(value, list):
        return value
    return [{"role": role, "content": check_text(value, key)}]


def _optional(find: Find, key: str) -> Any:
    try:
        return find(key)
    except ValueError:
        return None

"""How the fine-tuning demo's wheels become rows: (group, JSON of a record) pairs."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

Rows = Iterator[tuple[str, str]]

MAX_CHARACTERS = 1500
"""Longer rows, mostly long lists of functions, are left out."""
_SINGLE_TURN = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
)
_LIVE = ("live_simple", "live_multiple")


def problem_rows(wheel: Path) -> Rows:
    """Programming problems of reasoning-gym: task and specification, answered by code."""
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read("reasoning_gym/data/codeio.jsonl.gz")).splitlines()
    for line in lines:
        problem = {key: str(value).strip() for key, value in json.loads(line).items()}
        question = f"{problem['task_description']}\n\n{problem['input_output_spec']}"
        row = {"question": question, "answer": problem["code_sample"]}
        yield from _short(problem["task_description"], row)


def call_rows(wheel: Path) -> Rows:
    """Function calls of the Berkeley leaderboard that its authors wrote, single-turn."""
    yield from _calls(wheel, _SINGLE_TURN)


def live_call_rows(wheel: Path) -> Rows:
    """Function calls that users of the leaderboard contributed, single-turn."""
    yield from _calls(wheel, _LIVE)


def chat_rows(language: str) -> Callable[[Path], Rows]:
    """Short conversations of chatterbot-corpus in a language; of all but the largest two for
    `other`."""

    def read(wheel: Path) -> Rows:
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                folder = name.split("/")[-2] if name.endswith(".yml") else ""
                found = folder if folder in ("english", "persian") else "other"
                if not folder or found != language:
                    continue
                conversations = yaml.safe_load(archive.read(name)).get("conversations") or []
                for turns in conversations:
                    yield from _conversation(turns)

    return read


ANSWER_READERS: dict[str, Callable[[Path], Rows]] = {
    "code": problem_rows,
    "calls": call_rows,
    "calls_live": live_call_rows,
    "chat_english": chat_rows("english"),
    "chat_persian": chat_rows("persian"),
    "chat_other": chat_rows("other"),
}


def _calls(wheel: Path, categories: tuple[str, ...]) -> Rows:
    with zipfile.ZipFile(wheel) as archive:
        for category in categories:
            name = f"BFCL_v4_{category}.json"
            answers = {
                answer["id"]: answer["ground_truth"]
                for answer in _lines(archive, f"bfcl_eval/data/possible_answer/{name}")
            }
            for row in _lines(archive, f"bfcl_eval/data/{name}"):
                asked = row["question"][0][-1]["content"].strip()
                functions = "\n".join(json.dumps(f, ensure_ascii=False) for f in row["function"])
                calls = "; ".join(_call(call) for call in answers[row["id"]])
                prompt = f"Functions:\n{functions}\nRequest: {asked}\nCall:"
                yield from _short(asked, {"prompt": prompt, "completion": calls})


def _call(truth: dict[str, dict[str, list[Any]]]) -> str:
    """`{"f": {"x": [1, 2]}}`, which lists what each argument may be, as `f(x=1)`."""
    ((name, arguments),) = truth.items()
    given = {key: options[0] for key, options in arguments.items() if options and options[0] != ""}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def _conversation(turns: list[Any]) -> Rows:
    texts = [str(turn).strip() for turn in turns]
    if len(texts) < 2 or not all(texts):
        return
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": text}
        for number, text in enumerate(texts)
    ]
    yield from _short(texts[0], {"messages": messages})


def _short(group: str, row: dict[str, Any]) -> Rows:
    text = json.dumps(row, ensure_ascii=False)
    if len(text) <= MAX_CHARACTERS:
        yield group, text


def _lines(archive: zipfile.ZipFile, name: str) -> Iterator[dict[str, Any]]:
    return map(json.loads, archive.read(name).splitlines())

"""`{% generation %}` of chat templates: the tag around what the assistant says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from jinja2 import nodes, pass_eval_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

_OPEN, _CLOSE = "\ufdd8", "\ufdd9"
"""Never assigned by Unicode, so that no text has them."""
_MARK = re.compile(f"({_OPEN}|{_CLOSE})")


class GenerationTag(Extension):
    """Jinja extension that notes where the bodies of the tag stand in the rendered text.

    As in `transformers`, the tag changes no text: a body's place is what was rendered before it.
    Bodies inside a macro or a captured block are met before their place is known: these are
    rendered once more with a mark around each. One rendering at a time.
    """

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def __init__(self, environment: ImmutableSandboxedEnvironment) -> None:
        super().__init__(environment)
        environment.extend(generation_tag=self)
        self._rendered = 0
        self._bodies: list[tuple[int, str]] | None = None
        self._marks = ("", "")

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _note(self, context: nodes.EvalContext, caller: Macro) -> str:
        body = str(caller())
        if self._bodies is not None:
            self._bodies.append((self._rendered, body))
        return body.join(self._marks)

    def render(
        self, blocks: Callable[[], Iterable[str]], *, captured: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """The whole text of a template's `generate`, and the characters [start, stop) of each body
        that is not empty. `captured` is `captures_tag`. Raises `ValueError` where a body is not in
        the text as it was made."""
        try:
            text, bodies = self._rendering(blocks)
            if captured and bodies:
                self._marks = _OPEN, _CLOSE
                marked, again = self._rendering(blocks)
                # A template that looks into the body, or trims it, may write another text then.
                if _unmarked(marked) == text and marked.count(_OPEN) >= len(again):
                    return text, _marked_places(marked)
            return text, _found_places(text, bodies)
        finally:
            self._bodies, self._marks = None, ("", "")

    def _rendering(self, blocks: Callable[[], Iterable[str]]) -> tuple[str, list[tuple[int, str]]]:
        self._rendered, self._bodies = 0, []
        parts = []
        for block in blocks():
            parts.append(block)
            self._rendered += len(block)
        return "".join(parts), self._bodies


def captures_tag(tree: nodes.Template) -> bool:
    """Whether the tag is inside what keeps its text before it writes it, if it does."""
    keeping = (nodes.Macro, nodes.AssignBlock, nodes.FilterBlock, nodes.CallBlock, nodes.For)
    return any(
        inner.find(nodes.ExtensionAttribute) is not None
        for node in tree.find_all(keeping)
        if not isinstance(node, nodes.For) or node.recursive
        for inner in node.iter_child_nodes(only=("body",))
    )


def _found_places(text: str, bodies: Iterable[tuple[int, str]]) -> list[tuple[int, int]]:
    """Where each body is, from where it was met on."""
    places, done = [], 0
    for noted, body in bodies:
        start = text.find(body, max(noted, done))
        if start < 0:
            raise ValueError("the chat template changes the text inside {% generation %}")
        done = start + len(body)
        if body:
            places.append((start, done))
    return places


def _marked_places(marked: str) -> list[tuple[int, int]]:
    """What is between marks, of marks between marks the outer ones, in the text without them."""
    places, at, depth, start = [], 0, 0, 0
    for part in _MARK.split(marked):
        if part == _OPEN:
            start = start if depth else at
            depth += 1
        elif part == _CLOSE:
            depth -= 1
            if not depth and at > start:
                places.append((start, at))
        else:
            at += len(part)
    return places


def _unmarked(marked: str) -> str:
    return _MARK.sub("", marked)

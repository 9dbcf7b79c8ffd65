"""`{% generation %}` of chat templates: the tag around what the assistant says."""

from __future__ import annotations

from collections.abc import Iterable

from jinja2 import nodes, pass_eval_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment


class GenerationTag(Extension):
    """Jinja extension that notes where the bodies of the tag stand in the rendered text.

    As in `transformers`, the tag changes no text: a body's place is what was rendered before it.
    Bodies inside a macro or a captured block are met before their place is known, and are looked
    for from there on. One rendering at a time.
    """

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def __init__(self, environment: ImmutableSandboxedEnvironment) -> None:
        super().__init__(environment)
        environment.extend(generation_tag=self)
        self._rendered = 0
        self._bodies: list[tuple[int, str]] | None = None

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _note(self, context: nodes.EvalContext, caller: Macro) -> str:
        body = str(caller())
        if self._bodies is not None:
            self._bodies.append((self._rendered, body))
        return body

    def render(self, blocks: Iterable[str]) -> tuple[str, list[tuple[int, int]]]:
        """The whole text of a template's `generate`, and the characters [start, stop) of each body
        that is not empty. Raises `ValueError` where a body is not in the text as it was made."""
        self._rendered, self._bodies = 0, []
        try:
            parts = []
            for block in blocks:
                parts.append(block)
                self._rendered += len(block)
            text, spans, done = "".join(parts), [], 0
            for noted, body in self._bodies:
                start = text.find(body, max(noted, done))
                if start < 0:
                    raise ValueError("the chat template changes the text inside {% generation %}")
                done = start + len(body)
                if body:
                    spans.append((start, done))
            return text, spans
        finally:
            self._bodies = None

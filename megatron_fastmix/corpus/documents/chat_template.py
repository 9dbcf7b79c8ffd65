"""Chat templates of Hugging Face tokenizers, applied to conversations with answers marked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from megatron_fastmix.corpus.documents.answer_places import answer_places
from megatron_fastmix.corpus.tokenizers.hub_names import local_file
from megatron_fastmix.corpus.tokenizers.tokenizer_files import (
    more_templates,
    read_settings,
    special_tokens,
)
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.text_files import read_text

Messages = Sequence[dict[str, Any]]
Spans = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A Jinja template as `transformers` applies it, and the special tokens that it may name."""

    source: str
    """Text of the template."""
    tool_source: str | None = None
    """The template for conversations with tools, where the model has one of its own for them."""
    special_tokens: dict[str, str] = field(default_factory=dict, hash=False)
    """`bos_token`, `eos_token` and the like, by their names in the template."""

    def render(
        self,
        messages: Messages,
        variables: Mapping[str, Any] | None = None,
        *,
        first_answer: int = 0,
    ) -> tuple[str, Spans]:
        """The whole conversation as text, and the characters [start, stop) of its answers.

        The text is that of `apply_chat_template(messages, **variables)`. Answers are what the tag
        `{% generation %}` encloses where the template has it, else `answer_places`. Messages before
        `first_answer` are no answers. Raises `ValueError` where the template fails or its answers
        cannot be told apart.
        """
        variables = variables or {}

        def plain(messages: Messages, *, ask: bool = False) -> str:
            return self._render(messages, variables, ask=ask)[0]

        text, marked = self._render(messages, variables)
        if not self.marks_answers(variables):
            return text, answer_places(plain, messages, text, first_answer)
        start = 0
        if first_answer:
            prompt = plain(messages[:first_answer])
            if not text.startswith(prompt):
                raise ValueError("the chat template changes the prompt once it is answered")
            start = len(prompt)
        return text, [place for place in marked if place[0] >= start]

    def render_text(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        """The whole text; see `render`."""
        return self._render(messages, variables)[0]

    def marks_answers(self, variables: Mapping[str, Any]) -> bool:
        """Whether the template for these variables has the tag `{% generation %}`."""
        return _compiled(self._source(variables)).has_generation_tag

    def names(self, variables: Mapping[str, Any]) -> frozenset[str]:
        """Variables, attributes and texts that the template for these variables mentions."""
        return _compiled(self._source(variables)).names

    @property
    def used_tokens(self) -> frozenset[str]:
        """Names of the special tokens that the template writes."""
        return frozenset(name for name in self._variables if name.endswith("_token"))

    @property
    def undefined_tokens(self) -> list[str]:
        """Special tokens that the template writes, and that are defined nowhere."""
        return sorted(self.used_tokens - self.special_tokens.keys())

    @property
    def record_variables(self) -> frozenset[str]:
        """What the template asks for beside the messages and the special tokens."""
        return self._variables - _RESERVED - self.used_tokens

    @property
    def _variables(self) -> frozenset[str]:
        more = _compiled(self.tool_source).variables if self.tool_source else frozenset()
        return _compiled(self.source).variables | more

    def variables(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the record's values that the template asks for, such as `tools`."""
        wanted = _compiled(self._source(record)).variables - _RESERVED
        return {
            name: value
            for name, value in record.items()
            if name in wanted and value is not None and not name.endswith("_token")
        }

    def _source(self, variables: Mapping[str, Any]) -> str:
        return self.tool_source if self.tool_source and variables.get("tools") else self.source

    def _render(
        self, messages: Messages, variables: Mapping[str, Any], *, ask: bool = False
    ) -> tuple[str, Spans]:
        compiled = _compiled(self._source(variables))
        values = {"tools": None, "documents": None, **self.special_tokens, **variables}

        def blocks() -> Iterator[str]:
            found: Iterator[str] = compiled.template.generate(
                messages=list(messages), add_generation_prompt=ask, **values
            )
            return found

        try:
            tag = compiled.template.environment.generation_tag
            text, spans = tag.render(blocks, captured=compiled.captures_tag)
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("the rendered text holds half a surrogate pair") from None
        except Exception as error:  # a template may fail in any way that Python can
            reason = str(error) or type(error).__name__
            raise ValueError(f"the chat template fails: {reason:.300}") from None
        return text, spans


def read_chat_template(path: str | Path, defaults: Mapping[str, str] | None = None) -> ChatTemplate:
    """A template from a .jinja file, from tokenizer_config.json, or from a model's folder.

    `defaults` are special tokens for a template whose files name none. Raises `ConfigError` where
    there is no template, or it is damaged.
    """
    path = local_file(path, ("chat_template.jinja", "tokenizer_config.json"), "chat_template")
    folder = path if path.is_dir() else path.parent
    try:
        sources = _sources(path)
        tokens = {name: token.text for name, token in special_tokens(folder).items()}
    except DataError as error:
        raise ConfigError(f"chat_template: {error}") from None
    source = sources.get("default")
    if not source:
        raise ConfigError(
            f"chat_template: found none in {path}; give a .jinja file, a tokenizer_config.json "
            "with the key chat_template, or the folder of a model that has either"
        )
    template = ChatTemplate(
        source=source,
        tool_source=sources.get("tool_use"),
        special_tokens={**(defaults or {}), **tokens},
    )
    for part in sources.values():
        try:
            _compiled(part)
        except ValueError as error:
            raise ConfigError(f"chat_template: {path}: {error}") from None
    return template


def _sources(path: Path) -> dict[str, str]:
    """Templates by name; "default" is the one for conversations, "tool_use" that with tools."""
    if path.is_dir():
        if (path / "chat_template.jinja").exists():
            return _sources(path / "chat_template.jinja")
        for name in ("tokenizer_config.json", "chat_template.json"):
            found = _sources(path / name) if (path / name).exists() else {}
            if found:
                return found
        return {}
    if path.suffix != ".json":
        more = more_templates(path.parent) if path.name == "chat_template.jinja" else []
        files = {"default": path} | {f.stem: f for f in more if f.stem in {"default", "tool_use"}}
        return {name: read_text(file, "the chat template") for name, file in files.items()}
    value = read_settings(path).get("chat_template")
    entries = [{"name": "default", "template": value}] if isinstance(value, str) else value or []
    found = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        fields = entry if isinstance(entry, dict) else {}
        title, body = fields.get("name"), fields.get("template")
        if not isinstance(title, str) or not isinstance(body, str):
            raise ConfigError(
                f"chat_template: {path}: expected the template's text, or a list of objects with "
                f"name and template, found {value!r:.60}"
            )
        found[title] = body
    return found


_RESERVED = {"messages", "add_generation_prompt", "continue_final_message"}


@dataclass(frozen=True, kw_only=True)
class _Compiled:
    template: Any
    variables: frozenset[str]
    """What the template takes from outside."""
    names: frozenset[str]
    has_generation_tag: bool
    captures_tag: bool
    """Whether the tag stands where its text is kept before it is written."""


@lru_cache
def _compiled(source: str) -> _Compiled:
    """Raises `ValueError` for a template that cannot be compiled."""
    from jinja2 import meta, nodes
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from megatron_fastmix.corpus.documents.generation_tag import GenerationTag, captures_tag

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        tree = environment.parse(source)
        names = {node.attr for node in tree.find_all(nodes.Getattr)}
        names |= {str(node.value) for node in tree.find_all(nodes.Const)}
        variables = frozenset(meta.find_undeclared_variables(tree))
        # jinja2 gives no tree to the tag's call but this one.
        calls = tree.find_all(nodes.ExtensionAttribute)
        return _Compiled(
            template=environment.from_string(source),
            variables=variables,
            names=frozenset(names) | variables,
            has_generation_tag=any(True for _ in calls),
            captures_tag=captures_tag(tree),
        )
    except Exception as error:  # a damaged file may fail in any part of jinja2 or of Python
        reason = str(error) or type(error).__name__
        line = getattr(error, "lineno", None)
        where = f" at line {line}" if line else ""
        raise ValueError(f"the chat template fails{where}: {reason:.300}") from None

"""Chat templates of Hugging Face tokenizers, applied to conversations with answers marked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from megatron_fastmix.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A Jinja template as `transformers` applies it, and the special tokens that it may name."""

    source: str
    """Text of the template."""
    special_tokens: dict[str, str] = field(default_factory=dict, hash=False)
    """`bos_token`, `eos_token` and the like, by their names in the template."""

    def parts(self, messages: Sequence[dict[str, Any]]) -> tuple[list[str], list[bool]]:
        """The conversation in parts up to the last answer, and for each whether it is an answer.

        An answer is what a turn of the assistant adds to the prompt that asks for it
        (`add_generation_prompt`), its end-of-turn token included. Raises `ValueError` where the
        template fails, or renders a conversation otherwise once it goes on.
        """
        parts: list[str] = []
        answers: list[bool] = []
        done = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked = self._render(messages[:number], add_generation_prompt=True)
            answered = self._render(messages[: number + 1], add_generation_prompt=False)
            if not asked.startswith(done) or not answered.startswith(asked):
                raise ValueError(
                    f"the chat template changes earlier text at message {number + 1}, so that its "
                    "answer cannot be told apart"
                )
            parts += [asked[len(done) :], answered[len(asked) :]]
            answers += [False, True]
            done = answered
        return parts, answers

    def _render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        import jinja2

        try:
            return _compiled(self.source).render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template fails: {error}") from None


def read_chat_template(path: str | Path) -> ChatTemplate:
    """A template from a .jinja file, from tokenizer_config.json, or from a model's folder.

    Raises `ConfigError` where there is none.
    """
    path = Path(path)
    config = path / "tokenizer_config.json" if path.is_dir() else path
    jinja = path / "chat_template.jinja" if path.is_dir() else path
    tokens: dict[str, str] = {}
    source = None
    try:
        if config.suffix == ".json" and config.exists():
            values = json.loads(config.read_text(encoding="utf-8"))
            source = values.get("chat_template")
            for name, value in values.items():
                if name.endswith("_token") and value:
                    tokens[name] = value["content"] if isinstance(value, dict) else str(value)
        if jinja.suffix == ".jinja" and jinja.exists():
            source = jinja.read_text(encoding="utf-8")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"chat_template: {path} cannot be read: {error}") from None
    if isinstance(source, list):  # several by name; "default" is the one for conversations
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if not source:
        raise ConfigError(
            f"chat_template: found none in {path}; give a .jinja file, a tokenizer_config.json "
            "with the key chat_template, or the folder of a model that has either"
        )
    return ChatTemplate(source=source, special_tokens=tokens)


@lru_cache
def _compiled(source: str) -> Any:
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, ensure_ascii=False, **options
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)

"""Every key of a configuration with its type, default and explanation, from the dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
import types
import typing
from dataclasses import dataclass

from megatron_fastmix.config.megatron_flags import meaning_here
from megatron_fastmix.config.search import SearchConfig
from megatron_fastmix.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Key:
    """One field."""

    name: str
    """Dotted; `sources[].path` is a field of each source."""
    type: str
    default: str
    """As YAML has it; `required` without."""
    explanation: str


def keys() -> list[Key]:
    """All keys, in the order of the dataclasses."""
    return _keys_of(SearchConfig, "")


def find_keys(asked: str) -> list[Key]:
    """The key of that name, or those of the section. A flag of Megatron's form (`--train-iters`)
    and a last part alone are understood.

    Raises `ConfigError` with what Megatron's users mean by it, or the three nearest keys.
    """
    flag = asked.lower().removeprefix("--").removeprefix("fastmix-")
    name = flag.replace("-", "_")
    all_keys = keys()
    exact = [key for key in all_keys if name in (key.name, key.name.replace("[]", ""))]
    section = [key for key in all_keys if key.name.startswith((f"{name}.", f"{name}[]."))]
    last = [key for key in all_keys if key.name.rpartition(".")[2] == name]
    if found := exact or section or last:
        return found
    if meaning := meaning_here(flag):
        raise ConfigError(f"{asked} is no key; here it is: {meaning}")
    near = sorted(all_keys, key=lambda key: -_likeness(name, key))[:3]
    raise ConfigError(
        f"{asked}: no such key; the nearest are {', '.join(key.name for key in near)}"
    )


def _likeness(asked: str, key: Key) -> float:
    """How well a key answers to a name that is none: by its spelling, and by its explanation."""
    section, _, last = asked.rpartition(".")
    own_section, _, own_last = key.name.replace("[]", "").rpartition(".")
    alike = difflib.SequenceMatcher(None, last, own_last).ratio()
    alike += 0.5 * (last in own_last.split("_")) + 0.3 * (last in own_last)
    words = re.findall(r"\w+", key.explanation.lower())
    alike += 0.6 * all(word in words for word in last.split("_"))
    return alike + 0.4 * (bool(section) and section == own_section)


def _keys_of(cls: type, prefix: str) -> list[Key]:
    hints, texts = typing.get_type_hints(cls), _explanations(cls)
    found = []
    for field in dataclasses.fields(cls):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        inner = next(iter(typing.get_args(hint)), None)
        if dataclasses.is_dataclass(hint):
            found += _keys_of(typing.cast(type, hint), f"{name}.")
        elif dataclasses.is_dataclass(inner):
            found += _keys_of(typing.cast(type, inner), f"{name}[].")
        else:
            found.append(
                Key(
                    name=name,
                    type=_type_name(hint),
                    default=_default(field),
                    explanation=texts.get(field.name, ""),
                )
            )
    return found


def _explanations(cls: type) -> dict[str, str]:
    """The string below each field."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for one, following in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(one, ast.AnnAssign)
            and isinstance(one.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            texts[one.target.id] = " ".join(str(following.value.value).split())
    return texts


def _type_name(hint: typing.Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return " or ".join(_type_name(a) for a in arguments if a is not type(None)) + " or null"
    if typing.get_origin(hint) is types.UnionType:
        return " or ".join(map(_type_name, arguments))
    if typing.get_origin(hint) is tuple:
        return f"list of {_type_name(arguments[0])}"
    return getattr(hint, "__name__", str(hint))


def _default(field: dataclasses.Field[typing.Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else str(value)

"""YAML to nested dataclasses, strictly: an unknown key, one that stands twice or a wrong type is an
error that helps. The one reader of YAML.

Supported field types: int, float, str, bool, `Any`, `Literal`, `X | None`, nested dataclasses,
`tuple[X, ...]`, `X | tuple[X, ...]`, `list[X]` and `dict[str, X]`. Nothing else is needed, and
nothing else is accepted.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_fastmix.config.megatron_flags import meaning_here
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.text_files import read_text

_LARGEST = 2**63
"""No number of a configuration is as large; beyond it arithmetic on them would fail."""
_MOST_VALUES = 1_000_000
"""What anchors may multiply a file to."""
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader takes the last of two equal keys in silence; this one refuses them, and
    numbers that YAML 1.1 reads in base 8 or 60."""

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        text = node.value.lstrip("+-")
        base = 60 if ":" in text else 8
        integer = node.tag == "tag:yaml.org,2002:int"
        if base == 60 or (integer and text[0] == "0" and text[1:].replace("_", "").isdecimal()):
            raise yaml.YAMLError(
                f"found {node.value} on line {node.start_mark.line + 1}, which YAML 1.1 reads as a "
                f"number in base {base}: write it in base 10, or in quotes if it is a text"
            )
        return self.construct_yaml_int(node) if integer else self.construct_yaml_float(node)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As it is written: a merge by `<<`, whose keys may be overridden, comes later."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            merge = key_node.tag == _MERGE
            key = "<<" if merge else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in lines:
                raise _TwiceError(
                    f"the key {key!r} is on line {lines[key]} and again on line {line}"
                )
            lines[key] = line
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Puts in what `<<` merges: of a list of mappings the first that has a key counts, and the
        own keys before all. PyYAML 6.0.4 lets the last of the list count."""
        merge = next((value for key, value in node.value if key.tag == _MERGE), None)
        parts = merge.value if isinstance(merge, yaml.SequenceNode) else [merge]
        if all(isinstance(part, yaml.MappingNode) for part in parts):
            own = [pair for pair in node.value if pair[0].tag != _MERGE]
            merged = []
            for part in reversed(parts):
                self.flatten_mapping(part)
                merged += part.value
            node.value = merged + own  # of equal keys the last counts
        super().flatten_mapping(node)  # refuses to merge anything else


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


class _TwiceError(yaml.YAMLError):
    """A key that stands twice in one mapping."""


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping with the safe loader.

    Raises `ConfigError` for a missing file, a syntax error (with its line), a key that stands twice
    in a mapping (with both lines) or a top level that is not a mapping.
    """
    text = read_text(path, "the configuration", fix="give a YAML file", error=ConfigError)
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ConfigError(f"{path}: expected a mapping of keys at the top level, found {found}")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises `ConfigError` for what is none, with `where` it is from."""
    if "\n\ufeff" in text:
        line = text[: text.index("\n\ufeff")].count("\n") + 2
        raise ConfigError(
            f"{where}: line {line} begins with a byte-order mark (U+FEFF), as of a file that was "
            "put behind another; remove it"
        )
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _count_values(node)
        return None if node is None else loader.construct_document(node)
    except _TwiceError as error:
        raise ConfigError(f"{where}: {error}; a mapping has each key once: keep one") from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML: nested too deeply") from None
    # ValueError and OverflowError: dates that no calendar has, numbers of thousands of digits.
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from None


def _count_values(root: yaml.Node | None) -> None:
    """Raises `ValueError` where anchors within anchors make more values than memory may hold."""
    sizes: dict[int, int] = {}

    def count(node: Any) -> int:
        known = sizes.get(id(node))
        if known == 0:
            raise ValueError("an anchor holds itself")
        if known is None:
            sizes[id(node)] = 0
            parts = getattr(node, "value", "")
            items: list[Any] = [] if isinstance(parts, str) else list(parts)
            nodes = [n for item in items for n in (item if isinstance(item, tuple) else (item,))]
            known = sizes[id(node)] = 1 + sum(map(count, nodes))
        return known

    if root is not None and count(root) > _MOST_VALUES:
        raise ValueError(f"its anchors make more than {_MOST_VALUES:,} values")


def from_dict(cls: type, values: Any, where: str = "") -> Any:
    """Builds the dataclass `cls` from `values`; `where` is the dotted path used in errors."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'configuration'}: expected a mapping, found {values!r}")
    hints = _hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ConfigError(_unknown_key(str(key), list(fields), where))
    arguments = {}
    for name, field in fields.items():
        at = f"{where}.{name}" if where else name
        if name in values:
            arguments[name] = _convert(hints[name], values[name], at)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{at}: missing; it has no default, so the configuration must set it")
    return cls(**arguments)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Worked out once: a configuration may have thousands of sources."""
    return typing.get_type_hints(cls)


def check_type(hint: Any, value: Any, where: str) -> None:
    """Raises `ConfigError` unless `value` is one for a field of the type `hint`."""
    _convert(hint, value, where)


def apply_overrides(
    cls: type, values: dict[str, Any], overrides: Sequence[str], own_sections: Sequence[str] = ()
) -> dict[str, Any]:
    """Sets `--key=value` overrides in a nested mapping and returns it.

    A key is dotted (`--training.lr=1e-3`), or Megatron's flag name (`--train-iters=100`), or one
    of ours with the prefix `fastmix-` (`--fastmix-inner-steps=20`); the latter two name the
    field whose name they are, wherever it is, as long as only one has that name. Where several
    have it, the prefix means one in `own_sections`, and its absence one in another section. Values
    are parsed as YAML.
    """
    leaves = _leaves(cls)
    for override in overrides:
        flag, separator, text = override.partition("=")
        meaning = meaning_here(flag.removeprefix("--"))
        if not flag.startswith("--") or not separator:
            here = f"; {flag} is here {meaning}" if meaning else ""
            raise ConfigError(f"{override}: overrides have the form --key=value{here}")
        key = flag[2:]
        if "." not in key and key not in leaves:
            leaf = key.removeprefix("fastmix-").replace("-", "_")
            matches = [path for path in leaves if path.rpartition(".")[2] == leaf]
            if len(matches) > 1:
                ours = key.startswith("fastmix-")
                matches = [m for m in matches if (m.split(".")[0] in own_sections) == ours]
            if len(matches) > 1:
                raise ConfigError(f"{flag}: ambiguous; write one of {', '.join(matches)}")
            key = matches[0] if matches else key
        if key not in leaves and meaning:
            raise ConfigError(f"{flag} is no key; here it is: {meaning}")
        if key not in leaves:
            raise ConfigError(_unknown_key(key, leaves, "--"))
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{flag}: {parent} is not a section of the configuration")
        section[last] = parse_scalar(text, flag)
    return values


def parse_scalar(text: str, where: str) -> Any:
    """One YAML value; unlike YAML 1.1, `1e-4` is a number, as it is on Megatron's command line."""
    return float(text) if _is_exponent(text) else parse_yaml(text, where)


def to_dict(config: Any) -> Any:
    """The nested plain values of a dataclass, ready for `yaml.safe_dump` or JSON."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    return config


def _is_exponent(text: str) -> bool:
    mantissa, separator, exponent = text.lower().partition("e")
    digits = mantissa.replace(".", "", 1).lstrip("+-") + exponent.lstrip("+-")
    if not (separator and mantissa and exponent and digits.isdecimal()):
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _leaves(cls: type, prefix: str = "") -> list[str]:
    paths = []
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            paths += _leaves(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def _unknown_key(key: str, valid: Sequence[str], where: str) -> str:
    at = where if where == "--" or not where else f"{where}."
    # Without a section it is a name like Megatron's, which may be in several.
    paths: dict[str, list[str]] = {}
    for path in valid:
        paths.setdefault(path if "." in key else path.rpartition(".")[2], []).append(path)
    name = key.removeprefix("fastmix-").replace("-", "_")
    close = difflib.get_close_matches(name, paths, n=1, cutoff=0.7)
    hint = (
        f"did you mean {' or '.join(paths[close[0]])}?"
        if close
        else f"valid keys: {', '.join(sorted(valid))}"
    )
    return f"{at}{key}: unknown key; {hint}"


def _convert(hint: Any, value: Any, at: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(_member(arguments, value), value, at)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, at)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{at}: expected a list, found {value!r}")
        return origin(_convert(arguments[0], item, f"{at}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{at}: expected a mapping, found {value!r}")
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{at}: expected names as keys, found {key!r}")
        if arguments[1] in (float, float | None) and all(map(_is_plain_float, value.values())):
            return value  # thousands of numbers of a line of metrics
        return {key: _convert(arguments[1], item, f"{at}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if origin is typing.Literal:
        # 1 == 1.0 == True, which are not each other.
        if (type(value), value) not in [(type(choice), choice) for choice in arguments]:
            choices = ", ".join(map(str, arguments))
            raise ConfigError(f"{at}: found {value!r}; choose one of {choices}")
        return value
    if hint is float and isinstance(value, str) and _is_exponent(value):
        value = float(value)  # YAML 1.1 reads 1e-4, without a point, as text
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{at}: found {value}; use a finite number")
    if isinstance(value, int) and not isinstance(value, bool) and hint in (int, float):
        if abs(value) >= _LARGEST:
            raise ConfigError(
                f"{at}: found a number of {value.bit_length()} bits; use a smaller one"
            )
        return hint(value)
    if type(value) is not hint:
        raise ConfigError(f"{at}: expected {hint.__name__}, found {value!r}")
    if isinstance(value, str):
        _check_text(value, at)
    return value


def _is_plain_float(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _member(arguments: Sequence[Any], value: Any) -> Any:
    """What `value` is meant to be of a union's types: a list where one may be given."""
    others = [argument for argument in arguments if argument is not type(None)]
    lists = [argument for argument in others if typing.get_origin(argument) is tuple]
    if lists and isinstance(value, list | tuple):
        return lists[0]
    # The value's own type where it is one of them, such as text for a number with a unit.
    own = [argument for argument in others if type(value) is argument]
    return (own or [argument for argument in others if argument not in lists] or others)[0]


def _check_text(value: str, at: str) -> None:
    """Refuses what no file name can hold and no output can show."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(f"{at}: found {value!r}, which holds half a surrogate pair") from None
    if "\0" in value:
        raise ConfigError(f"{at}: found {value!r}, which holds a NUL character; leave it out")

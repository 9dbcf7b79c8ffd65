"""Every format that a mixture can be exported to, by name. A format is one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export import megatron
from megatron_fastmix.export.blend import Blend


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format and what is to be known about it."""

    render: Callable[[Blend], str]
    """The whole text of the export."""
    tool: str
    """Who reads it, and how."""


FORMATS: dict[str, Format] = {
    "megatron-cli": Format(
        render=megatron.command_line,
        tool="Megatron-LM and Megatron-DeepSpeed, on the command line: --data-path ...",
    ),
    "megatron-data-args": Format(
        render=megatron.data_args,
        tool="Megatron-LM: --data-args-path FILE",
    ),
    "megatron-per-split": Format(
        render=megatron.per_split,
        tool="Megatron-LM: --per-split-data-args-path FILE; valid are the search's targets",
    ),
}


def find_format(name: str) -> Format:
    """The format called `name`; `ConfigError` with the valid names for an unknown one."""
    if name not in FORMATS:
        raise ConfigError(f"--format: found {name!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]

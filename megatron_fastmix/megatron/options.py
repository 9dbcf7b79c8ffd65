"""What the user asks of a Megatron run, told apart from what is for Megatron."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_fastmix.errors import ConfigError

PREFIX = "--fastmix-"
USAGE = """\
usage: torchrun ... -m megatron_fastmix.megatron SCRIPT|-m MODULE ARGUMENTS... --fastmix-...

Runs an unmodified Megatron script on a learned mixture. All that does not begin with --fastmix-
is the script's own.
"""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The `--fastmix-` flags of a run."""

    mixture: Path | None = None
    """`mixture.json` or the folder of a search: weights, and the paths of the sources."""
    schedule: Path | None = None
    """Weights by consumed samples (YAML); without it the mixture's hold for the whole run."""
    weighting: Literal["sampling", "loss"] = "sampling"
    """`sampling` draws sources by their weights, as Megatron does; `loss` draws them evenly and
    multiplies the loss mask by K·α."""
    max_epochs: float | Mapping[str, float] | None = None
    """How often a source may be read, for all or by name."""
    block_size: int | None = None
    """Samples per block of draws; default: the global batch size."""
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Paths of sources that lie elsewhere than the mixture says."""
    loss_by_source: bool = True
    """Whether losses, tokens and epochs by source are logged."""
    accept_changes: bool = False
    """Whether a run may go on with another mixture than its checkpoint's."""


def split_arguments(arguments: Sequence[str]) -> tuple[RunOptions, list[str]]:
    """Our flags, and everything else in its order: the script or `-m MODULE`, and its arguments.

    Raises `ConfigError` for an unknown flag of ours, a value that cannot work, or no script.
    """
    parser = _parser()
    with_value = {
        flag for action in parser._actions if action.nargs != 0 for flag in action.option_strings
    }
    ours: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if not word.startswith(PREFIX):
            rest.append(word)
            continue
        ours.append(word)
        if word in with_value:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"{word}: has no value; give one behind it")
            ours.append(value)
    values, unknown = parser.parse_known_args(ours)
    if unknown:
        known = sorted(flag for action in parser._actions for flag in action.option_strings)
        raise ConfigError(f"{unknown[0]}: no such flag; choose from {', '.join(known)}")
    if values.mixture is None and values.schedule is None:
        raise ConfigError(
            "--fastmix-mixture: missing; give a search's run folder or mixture.json, or "
            "--fastmix-schedule FILE with --fastmix-source NAME=PATH for each source"
        )
    if not rest or (rest[0] == "-m" and len(rest) < 2):
        raise ConfigError("no script; give a script, or -m MODULE, before its arguments")
    if values.block_size is not None and values.block_size < 1:
        raise ConfigError(f"{PREFIX}block-size: found {values.block_size}; use 1 or more")
    options = RunOptions(
        mixture=values.mixture,
        schedule=values.schedule,
        weighting=values.weighting,
        max_epochs=_max_epochs(values.max_epochs),
        block_size=values.block_size,
        sources=_sources(values.source),
        loss_by_source=not values.no_loss_by_source,
        accept_changes=values.accept_changes,
    )
    return options, rest


def help_text() -> str:
    """The text of `--help`."""
    return f"{USAGE}\n{_parser().format_help().partition('options:')[2].strip()}\n"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigError(message.removeprefix("argument "))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    add = parser.add_argument
    add(
        f"{PREFIX}mixture",
        type=Path,
        metavar="RUN",
        help="a search's run folder or mixture.json: weights, and the sources' paths",
    )
    add(
        f"{PREFIX}schedule",
        type=Path,
        metavar="FILE",
        help="weights by consumed samples, in place of the mixture's",
    )
    add(
        f"{PREFIX}weighting",
        choices=("sampling", "loss"),
        default="sampling",
        help="draw by the weights (default), or draw evenly and weigh the loss, which needs "
        "--calculate-per-token-loss",
    )
    add(
        f"{PREFIX}max-epochs",
        action="append",
        default=[],
        metavar="N|NAME=N",
        help="read no source, or this one, more often; may be repeated",
    )
    add(
        f"{PREFIX}block-size",
        type=int,
        metavar="SAMPLES",
        help="draws per block (default: the global batch size)",
    )
    add(
        f"{PREFIX}source",
        action="append",
        default=[],
        metavar="NAME=PATH,...",
        help="where a source lies: prefixes, folders or patterns; may be repeated",
    )
    add(
        f"{PREFIX}no-loss-by-source",
        action="store_true",
        help="log no losses, tokens and epochs by source",
    )
    add(
        f"{PREFIX}accept-changes",
        action="store_true",
        help="go on from a checkpoint with another mixture, from its sample on",
    )
    for action in parser._actions:
        action.dest = action.dest.removeprefix("fastmix_")
    return parser


def _max_epochs(texts: Sequence[str]) -> float | dict[str, float] | None:
    caps: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            cap = float(number)
        except ValueError:
            cap = 0.0
        if not 0 < cap < math.inf:
            raise ConfigError(f"{PREFIX}max-epochs: found {text}; use a number above 0, or NAME=N")
        if name in caps:
            raise ConfigError(f"{PREFIX}max-epochs: {name or 'the number for all'} is given twice")
        caps[name] = cap
    if set(caps) == {""}:
        return caps[""]
    if "" in caps:
        raise ConfigError(f"{PREFIX}max-epochs: give one number for all, or NAME=N, not both")
    return caps or None


def _sources(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    sources: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, separator, paths = text.partition("=")
        if not separator or not name or not paths.strip(","):
            raise ConfigError(f"{PREFIX}source: found {text}; expected NAME=PATH,PATH,...")
        added = tuple(path for path in paths.split(",") if path)
        sources[name] = sources.get(name, ()) + added
    return sources

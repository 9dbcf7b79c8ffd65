"""The command `import`: a Megatron blend as the start or the prior of a search."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from megatron_fastmix.corpus.indexed.answer_rows import count_answer_rows, is_answer_only
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.import_blend import read_blend, read_named_blend, shares_of_loss_tokens
from megatron_fastmix.export.join_shards import join_shards
from megatron_fastmix.export.nemotron import source_of

if TYPE_CHECKING:
    from megatron_fastmix.config import SourceConfig

SECTIONS = {
    "initial_weights": ("mixture", "initial_weights"),
    "prior": ("objective", "prior_weights"),
}
DIGITS = 10
"""Of each weight; decimals would make a small one 0, and a search's are above 0."""
_UNCUT = 1 << 40
"""A sequence length that cuts no row."""

HELP = "read a Megatron blend as the start of a search"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "blend",
        metavar="FILE",
        help="Nemotron's DataBlend, a file of --data-args-path or --per-split-data-args-path, a "
        "command line with --data-path, or a configuration of NeMo with data_prefix",
    )
    parser.add_argument(
        "--as",
        dest="use",
        choices=SECTIONS,
        default="initial_weights",
        help="what the weights become (default %(default)s)",
    )
    parser.add_argument(
        "--config",
        metavar="YAML",
        help="a search's configuration, whose sources the weights follow; without it, the sources "
        "are printed too",
    )
    parser.add_argument(
        "--missing-weight",
        type=float,
        metavar="SHARE",
        help="share of each source of the configuration that the blend lacks",
    )
    parser.add_argument(
        "--join",
        action="append",
        default=[],
        metavar="[NAME=]PATTERN",
        help="datasets that are one source, such as 'cc_*'; numbered parts (web_00001, web-part-2) "
        "are joined without it",
    )
    parser.add_argument(
        "--no-join-numbered", action="store_true", help="leave numbered parts apart"
    )


def run(args: argparse.Namespace) -> int:
    """Prints YAML for a search's configuration. Raises `ConfigError` and `DataError`."""
    named = read_named_blend(args.blend)
    if named is None:
        shares = read_blend(args.blend)
        shares = _of_loss_tokens(shares, {path: path for path in shares}, args.config)
    else:
        shares = {entry.name: entry.share for entry in named}
        if args.config is None:
            shares = _of_loss_tokens(shares, {entry.name: entry.path for entry in named}, None)
    open_paths = [path for path in shares if "$" in path]
    if open_paths:
        print(f"note: {open_paths[0]} names a variable; write its value instead", file=sys.stderr)
    section, key = SECTIONS[args.use]
    values: dict[str, Any] = {}
    if args.config is None:
        if named is None:
            joined = join_shards(list(shares), args.join, numbered=not args.no_join_numbered)
            weights = [math.fsum(shares[path] for path in paths) for paths in joined.values()]
            _say_joined(joined)
        else:
            _refuse_join(args, "a DataBlend names its sources")
            joined = {entry.name: [entry.path] for entry in named}
            weights = list(shares.values())
            print(
                "note: the paths are those of a DataBlend, often of raw text; write in their place "
                "the prefixes that your tokenized datasets have",
                file=sys.stderr,
            )
        values["sources"] = [
            {"name": name, "path": paths[0] if len(paths) == 1 else paths}
            for name, paths in joined.items()
        ]
    else:
        _refuse_join(args, "the sources of --config say what belongs together")
        weights = _in_order(shares, args, by_name=named is not None)
    values[section] = {key: [float(f"{weight:.{DIGITS}g}") for weight in weights]}
    sys.stdout.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return 0


def _of_loss_tokens(
    shares: dict[str, float], prefixes: dict[str, str], config: str | None
) -> dict[str, float]:
    from megatron_fastmix.config import load_config

    if config is None and len({is_answer_only(prefix) for prefix in prefixes.values()}) == 2:
        raise ConfigError(
            "--config: missing; the blend has text and answer-only rows, and what a sample of each "
            "brings to the loss depends on the configuration's data.seq_length"
        )
    seq_length = load_config(config).data.seq_length if config is not None else _UNCUT
    found = shares_of_loss_tokens(shares, seq_length, prefixes)
    if found != shares:
        print(
            "note: the blend has shares of rows; the search's are of answer tokens, by the mean "
            "length of each dataset's answers",
            file=sys.stderr,
        )
    return found


def _in_order(
    shares: dict[str, float], args: argparse.Namespace, *, by_name: bool = False
) -> list[float]:
    """The shares in the order of the configuration's sources, which are told by their paths, or
    by their names where the file has names."""
    from megatron_fastmix.config import load_config

    config = load_config(args.config)
    sources = config.sources
    names = [source.name for source in sources]
    if by_name:
        owners = {entry: source_of(entry, names) for entry in shares}
        owners = {entry: owner for entry, owner in owners.items() if owner in names}
    else:
        known = {path: source.name for source in sources for path in _paths(source)}
        # However the blend spells them: ./web, from the root, or through a link.
        by_place = {os.path.realpath(path): name for path, name in known.items()}
        places = {path: os.path.realpath(path) for path in shares}
        owners = {path: by_place[place] for path, place in places.items() if place in by_place}
    strangers = [path for path in shares if path not in owners]
    if strangers:
        whose = f"names are {', '.join(names)}" if by_name else f"paths are {', '.join(known)}"
        raise ConfigError(
            f"{args.blend}: {strangers[0]} is no source of {args.config}, whose {whose}; write "
            "them the same way in both"
        )
    found: dict[str, list[float]] = {}
    for path, share in shares.items():
        found.setdefault(owners[path], []).append(share)
    missing = [source.name for source in sources if source.name not in found]
    floor = args.missing_weight
    if missing and (floor is None or not 0 < floor < 1 / len(missing)):
        given = "is not given" if floor is None else f"is {floor:g}"
        raise ConfigError(
            f"{args.blend}: lacks {', '.join(missing)}, and a search needs "
            f"a positive weight for each; --missing-weight {given}: use a share above 0 and below "
            f"{1 / len(missing):.4g}"
        )
    sums = {name: math.fsum(shares) for name, shares in found.items()}
    if by_name:  # shares by path are converted by path
        lengths = {s.name: _loss_tokens_per_sample(s, config.data.seq_length) for s in sources}
        scaled = {name: share * lengths[name] for name, share in sums.items()}
        sums = {name: share / math.fsum(scaled.values()) for name, share in scaled.items()}
    rest = 1 - (floor or 0.0) * len(missing)
    return [sums[source.name] * rest if source.name in sums else floor for source in sources]


def _loss_tokens_per_sample(source: SourceConfig, seq_length: int) -> float:
    """What a sample that Megatron draws brings to the loss: of answer-only rows the mean."""
    prefixes = filter(is_answer_only, dict.fromkeys(_paths(source)))
    rows = [count_answer_rows(prefix, seq_length) for prefix in prefixes]
    if not rows:
        return seq_length
    return sum(each.answer_tokens for each in rows) / sum(each.kept_rows for each in rows)


def _paths(source: SourceConfig) -> list[str]:
    """Its path as it is written, and the prefixes of its datasets where they are there."""
    written = [source.path] if isinstance(source.path, str) else list(source.path)
    try:
        return [*written, *source.prefixes()]
    except DataError:
        return written


def _say_joined(joined: Mapping[str, Sequence[str]]) -> None:
    for name, paths in joined.items():
        if len(paths) > 1:
            print(
                f"note: {name} is {len(paths)} datasets, {paths[0]} to {paths[-1]}, with the sum "
                "of their weights; in a search and its exports each has its part by its size",
                file=sys.stderr,
            )


def _refuse_join(args: argparse.Namespace, reason: str) -> None:
    if args.join:
        raise ConfigError(f"--join: {reason}; leave it out")

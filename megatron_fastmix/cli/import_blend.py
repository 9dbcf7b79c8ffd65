"""The command `import`: a Megatron blend as the start or the prior of a search."""

from __future__ import annotations

import argparse
import sys
from pathlib import PurePath
from typing import Any

import yaml

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.import_blend import read_blend, read_named_blend

SECTIONS = {
    "initial_weights": ("mixture", "initial_weights"),
    "prior": ("objective", "prior_weights"),
}
SUM_DECIMALS = 10

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


def run(args: argparse.Namespace) -> int:
    """Prints YAML for a search's configuration. Raises `ConfigError` and `DataError`."""
    named = read_named_blend(args.blend)
    if named is None:
        shares = read_blend(args.blend)
    else:
        shares = {entry.name: entry.share for entry in named}
    open_paths = [path for path in shares if "${" in path]
    if open_paths:
        print(f"note: {open_paths[0]} names a variable; write its value instead", file=sys.stderr)
    section, key = SECTIONS[args.use]
    values: dict[str, Any] = {}
    if args.config is None:
        if named is None:
            pairs = list(zip(_names(list(shares)), shares, strict=True))
        else:
            pairs = [(entry.name, entry.path) for entry in named]
            print(
                "note: the paths are those of a DataBlend, often of raw text; write in their place "
                "the prefixes that your tokenized datasets have",
                file=sys.stderr,
            )
        values["sources"] = [{"name": name, "path": path} for name, path in pairs]
        weights = list(shares.values())
    else:
        weights = _in_order(shares, args, by_name=named is not None)
    values[section] = {key: [round(weight, SUM_DECIMALS) for weight in weights]}
    sys.stdout.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return 0


def _in_order(
    shares: dict[str, float], args: argparse.Namespace, *, by_name: bool = False
) -> list[float]:
    """The shares in the order of the configuration's sources, which are told by their paths, or
    by their names where the file has names."""
    from megatron_fastmix.config import load_config

    sources = load_config(args.config).sources
    paths = {source.name if by_name else source.path: source.name for source in sources}
    strangers = [path for path in shares if path not in paths]
    if strangers:
        raise ConfigError(
            f"{args.blend}: {strangers[0]} is no source of {args.config}, whose "
            f"{'names' if by_name else 'paths'} are {', '.join(paths)}; write them the same way in "
            "both"
        )
    missing = [path for path in paths if path not in shares]
    floor = args.missing_weight
    if missing and (floor is None or not 0 < floor < 1 / len(missing)):
        found = "is not given" if floor is None else f"is {floor:g}"
        raise ConfigError(
            f"{args.blend}: lacks {', '.join(paths[path] for path in missing)}, and a search needs "
            f"a positive weight for each; --missing-weight {found}: use a share above 0 and below "
            f"{1 / len(missing):.4g}"
        )
    rest = 1 - (floor or 0.0) * len(missing)
    return [shares[path] * rest if path in shares else floor for path in paths]


def _names(paths: list[str]) -> list[str]:
    """The last part of each prefix, numbered where two share it."""
    names: list[str] = []
    for path in paths:
        stem = PurePath(path).name or path
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names

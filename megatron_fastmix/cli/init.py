"""The verb `init`: a configuration to begin with."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.cli.tokenizer_flags import add_tokenizer_arguments, tokenizer_config
from megatron_fastmix.config import strict_yaml
from megatron_fastmix.config.search import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.import_blend import (
    parse_blend,
    read_blend,
    read_held_out,
    read_named_blend,
)
from megatron_fastmix.start.first_config import (
    FirstConfig,
    find_prefixes,
    first_config,
    shipped_configurations,
    there,
)

HELP = "write a configuration: a shipped one, or one for the data that you have"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `init`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="list the shipped configurations")
    what.add_argument("--template", metavar="NAME", help="a shipped configuration, as it is")
    what.add_argument(
        "--data-path",
        nargs="+",
        action="extend",
        metavar="WORD",
        help="Megatron's blend (weights and prefixes, or prefixes), or a file with one",
    )
    what.add_argument(
        "--data",
        nargs="+",
        action="extend",
        metavar="PLACE",
        help="prefixes of datasets, folders of them, or patterns; each dataset is a source",
    )
    parser.add_argument(
        "--target",
        nargs="+",
        action="extend",
        default=[],
        metavar="PLACE",
        help="held-out datasets (default: valid of a --per-split-data-args-path, or else those "
        "with valid, target, … in their names, or test where nothing else is held out)",
    )
    parser.add_argument("--huggingface", metavar="FOLDER", help="start from this model")
    add_tokenizer_arguments(parser, " (default: the model's, or the one in the data's manifest)")
    parser.add_argument("--run-dir", default="runs/search", help="default runs/search")
    parser.add_argument(
        "--output", default="search.yaml", metavar="FILE", help="default search.yaml"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the configuration and says how it was chosen. Raises `ConfigError`, `DataError`."""
    shipped = shipped_configurations()
    if args.list:
        width = max(map(len, shipped))
        for name, text in shipped.items():
            print(f"{name:{width}}  {text.splitlines()[0].removeprefix('# ')}")
        return 0
    output = Path(args.output)
    if output.exists():
        raise ConfigError(f"--output: {output} exists; give another name or remove it")
    if args.template is not None:
        if args.template not in shipped:
            raise ConfigError(
                f"--template: found {args.template}; choose one of {', '.join(shipped)}"
            )
        write_atomically(output, shipped[args.template].encode())
        print(f"Wrote {output}: set its paths, then megatron-fastmix plan --config {output}")
        return 0
    chosen = _for_data(args)
    # What is written must be one that the search reads.
    strict_yaml.from_dict(SearchConfig, chosen.values)
    write_atomically(output, chosen.text().encode())
    print("\n".join([f"Wrote {output}:", *(f"  {reason}" for reason in chosen.reasons)]))
    print(f"Next: megatron-fastmix plan --config {output}")
    return 0


def _for_data(args: argparse.Namespace) -> FirstConfig:
    shares: dict[str, float] | None = None
    held_out: list[str] = []
    if args.data_path is not None:
        shares, held_out = _blend(args.data_path)
        prefixes = there(shares, "--data-path")
    else:
        prefixes = find_prefixes(args.data, "--data")
    if args.target:
        held_out = find_prefixes(args.target, "--target")
    elif held_out:
        held_out = there(held_out, f"{args.data_path[0]}: valid")
    if args.tokenizer_type is None and args.tokenizer_model is not None:
        raise ConfigError("--tokenizer-model: give --tokenizer-type, too")
    return first_config(
        prefixes,
        held_out,
        shares=shares,
        huggingface=args.huggingface,
        tokenizer=None if args.tokenizer_type is None else tokenizer_config(args),
        run_dir=args.run_dir,
    )


def _blend(words: list[str]) -> tuple[dict[str, float], list[str]]:
    """Shares by prefix, and the prefixes that a file with a blend of each split holds out."""
    if len(words) > 1:
        return parse_blend(words, "--data-path"), []
    (word,) = words
    if Path(word).is_file():
        if read_named_blend(word) is not None:
            raise ConfigError(
                f"--data-path: {word} is a DataBlend, whose paths are of text that is not "
                "tokenized; give your tokenized datasets with --data, then their weights from it: "
                f"megatron-fastmix import {word} --config FILE"
            )
        return read_blend(word), read_held_out(word)
    if len(word.split()) == 1:
        raise ConfigError(
            f"--data-path: found no file {word}; give a file with a blend, or weights and prefixes "
            "as for Megatron; --data takes a folder"
        )
    return parse_blend(word.split(), "--data-path"), []  # in quotes

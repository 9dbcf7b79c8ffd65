"""The verb `init`: a configuration to begin with."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.config import strict_yaml
from megatron_fastmix.config.search import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.import_blend import parse_blend, read_blend
from megatron_fastmix.start.first_config import (
    FirstConfig,
    find_prefixes,
    first_config,
    shipped_configurations,
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
        metavar="WORD",
        help="Megatron's blend (weights and prefixes, or prefixes), or a file with one",
    )
    what.add_argument(
        "--data", nargs="+", metavar="PLACE", help="prefixes of datasets, or folders of them"
    )
    parser.add_argument(
        "--target",
        nargs="+",
        default=[],
        metavar="PREFIX",
        help="held-out datasets (default: those with valid, test, target, … in their names)",
    )
    parser.add_argument("--huggingface", metavar="FOLDER", help="start from this model")
    parser.add_argument("--tokenizer-type", help="default: the one in the data's manifest")
    parser.add_argument("--tokenizer-model", help="its file")
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
    shares = None
    if args.data_path is not None:
        words = args.data_path
        alone = len(words) == 1 and Path(words[0]).is_file()
        blend = read_blend(words[0]) if alone else parse_blend(words, "--data-path")
        prefixes, shares = list(blend), list(blend.values())
    else:
        prefixes = find_prefixes(args.data)
    return first_config(
        prefixes,
        args.target,
        shares=shares,
        huggingface=args.huggingface,
        tokenizer_type=args.tokenizer_type,
        tokenizer_model=args.tokenizer_model,
        run_dir=args.run_dir,
    )

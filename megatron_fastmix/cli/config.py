"""The verb `config`: what a key means."""

from __future__ import annotations

import argparse
import textwrap

from megatron_fastmix.config.megatron_flags import meaning_here
from megatron_fastmix.config.reference import Key, find_keys, keys

HELP = "say what the keys of a configuration mean"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `config`."""
    parser.add_argument(
        "key",
        nargs="?",
        help="a key (training.lr), a section (training) or a flag (--lr); default: all",
    )
    # A flag that is asked about, such as --bf16, is none of this command's own.
    parser.set_defaults(overrides=[])


def run(args: argparse.Namespace) -> int:
    """Prints the key, with explanation, type and default. Raises `ConfigError` for no key, with
    the nearest ones."""
    asked = args.key or next((flag.partition("=")[0] for flag in args.overrides), None)
    found = keys() if asked is None else find_keys(asked)
    print("\n".join(map(_text, found)))
    # A key that has the name of Megatron's flag may be another thing, as `optimizer` is.
    flag = (asked or "").removeprefix("--")
    meaning = meaning_here(flag)
    if meaning and meaning not in {key.name for key in found}:
        print(f"Megatron's --{flag} is here: {meaning}")
    return 0


def _text(key: Key) -> str:
    lines = textwrap.wrap(key.explanation, 92, initial_indent="    ", subsequent_indent="    ")
    return "\n".join([f"{key.name}: {key.default}    ({key.type})", *lines])

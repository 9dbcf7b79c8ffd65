"""The console command `megatron-fastmix`; a file per verb."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from megatron_fastmix import __version__
from megatron_fastmix.cli import (
    baseline,
    check_hosts,
    check_tables,
    compare,
    compare_methods,
    compare_mixtures,
    config,
    demo,
    export,
    export_schedule,
    import_blend,
    init,
    inspect,
    plan,
    preprocess,
    report,
    search,
    train_tokenizer,
)
from megatron_fastmix.cli.examples import EXAMPLES
from megatron_fastmix.config.reference import keys
from megatron_fastmix.config.require import path_as_in_a_shell
from megatron_fastmix.program import run_program

VERBS = {
    "init": init,
    "config": config,
    "demo": demo,
    "train-tokenizer": train_tokenizer,
    "preprocess": preprocess,
    "inspect": inspect,
    "plan": plan,
    "check-hosts": check_hosts,
    "search": search,
    "report": report,
    "compare": compare,
    "export": export,
    "export-schedule": export_schedule,
    "import": import_blend,
    "compare-mixtures": compare_mixtures,
    "baseline": baseline,
    "compare-methods": compare_methods,
    "check-tables": check_tables,
}
"""The verbs; each module has `HELP`, `add_arguments(parser)` and `run(args)`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns its exit code. Errors that are the user's to fix print one message."""
    parser = argparse.ArgumentParser(
        prog="megatron-fastmix",
        description="Learn the blend weights of a Megatron data pipeline by gradient descent.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for name, verb in VERBS.items():
        add_verb(verbs, name, verb)
    words = sys.argv[1:] if arguments is None else arguments
    args, rest = parser.parse_known_args([_with_home(word) for word in words])
    if rest and hasattr(args, "overrides"):
        args.overrides = join_flags(rest)
    elif rest:
        verbs.choices[args.verb].error(f"unknown arguments: {' '.join(rest)}")
    return run_program(lambda: VERBS[args.verb].run(args), "megatron-fastmix")


def _with_home(word: str) -> str:
    """`--flag=~/x` with the home folder, which bash puts for `--flag ~/x` alone."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--") or not value.startswith("~/"):  # YAML's null is a ~ alone
        return word
    return flag + equals + path_as_in_a_shell(value)


def add_verb(verbs: Any, name: str, verb: ModuleType) -> None:
    """Adds the parser of a verb, with examples at the end of its help."""
    # An abbreviation would take `--seed=1`, an override, for `--seeds`.
    parser = verbs.add_parser(
        name,
        help=verb.HELP,
        description=verb.HELP,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.register("action", None, _StoreOnce)
    verb.add_arguments(parser)
    examples = "\n".join(
        f"  megatron-fastmix {name} {example}".rstrip() for example in EXAMPLES[name]
    )
    before = f"{textwrap.fill(parser.epilog, 80)}\n\n" if parser.epilog else ""
    parser.epilog = f"{before}examples:\n{examples}"


class _StoreOnce(argparse.Action):
    """Stores a flag's value; a second one, which would replace it in silence, is refused."""

    given_in: argparse.Namespace | None = None

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string and self.given_in is namespace:
            raise argparse.ArgumentError(self, "given twice, and it takes one value; leave one out")
        self.given_in = namespace
        setattr(namespace, self.dest, values)


def join_flags(arguments: Sequence[str]) -> list[str]:
    """Turns `--key value` into `--key=value`, and Megatron's on/off flags, which it has without a
    value, into `--key=true`; any other argument that belongs to no flag stays."""
    joined: list[str] = []
    for argument in arguments:
        if not argument.startswith("--") and joined and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    bare = [argument for argument in joined if "=" not in argument]
    switches = _switches() if bare else set()
    return [
        f"{argument}=true" if argument in bare and _last_part(argument) in switches else argument
        for argument in joined
    ]


def _switches() -> set[str]:
    return {key.name.rpartition(".")[2] for key in keys() if key.type == "bool"}


def _last_part(flag: str) -> str:
    name = flag.removeprefix("--").removeprefix("fastmix-").replace("-", "_")
    return name.rpartition(".")[2]

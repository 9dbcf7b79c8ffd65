"""The console command `megatron-fastmix`; each verb's work is in its own package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from megatron_fastmix import __version__
from megatron_fastmix.cli.baseline import COMMANDS as BASELINE_COMMANDS
from megatron_fastmix.cli.compare_methods import COMMANDS as METHOD_COMMANDS
from megatron_fastmix.cli.compare_mixtures import COMMANDS as EVIDENCE_COMMANDS
from megatron_fastmix.cli.corpus import COMMANDS as CORPUS_COMMANDS
from megatron_fastmix.cli.export import COMMANDS as EXPORT_COMMANDS
from megatron_fastmix.cli.report import COMMANDS as REPORT_COMMANDS
from megatron_fastmix.cli.search import COMMANDS as SEARCH_COMMANDS
from megatron_fastmix.program import run_program

COMMANDS = {
    **CORPUS_COMMANDS,
    **SEARCH_COMMANDS,
    **REPORT_COMMANDS,
    **EXPORT_COMMANDS,
    **EVIDENCE_COMMANDS,
    **BASELINE_COMMANDS,
    **METHOD_COMMANDS,
}
"""Verb to (help, add_arguments, run)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns its exit code. Errors that are the user's to fix print one message."""
    parser = argparse.ArgumentParser(
        prog="megatron-fastmix",
        description="Learn the blend weights of a Megatron data pipeline by gradient descent.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for verb, (text, add_arguments, _) in COMMANDS.items():
        # An abbreviation would take `--seed=1`, an override, for `--seeds`.
        add_arguments(verbs.add_parser(verb, help=text, description=text, allow_abbrev=False))
    args, rest = parser.parse_known_args(arguments)
    if rest and hasattr(args, "overrides"):
        args.overrides = join_flags(rest)
    elif rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return run_program(lambda: COMMANDS[args.verb][2](args), "megatron-fastmix")


def join_flags(arguments: Sequence[str]) -> list[str]:
    """Turns `--key value` into `--key=value`; an argument that belongs to no flag stays."""
    joined: list[str] = []
    for argument in arguments:
        if not argument.startswith("--") and joined and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined

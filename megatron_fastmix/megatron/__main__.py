"""`python -m megatron_fastmix.megatron SCRIPT ARGUMENTS --fastmix-mixture RUN`."""

from __future__ import annotations

import logging
import os
import sys

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.megatron.options import help_text, split_arguments
from megatron_fastmix.megatron.script import enter, execute
from megatron_fastmix.program import run_program

_NOTHING_BUILT = "the script built no blended dataset of Megatron-core for training"


def main() -> None:
    """Runs the script. Raises `FastMixError` for what is the user's to fix, and what the script
    raises."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(help_text())
        return
    options, command = split_arguments(arguments)
    if int(os.environ.get("RANK", "0")):
        # What is to be said is the same on every rank; errors are raised.
        logging.getLogger("megatron_fastmix").setLevel(logging.ERROR)
    enter(command)
    # Not before: these import `megatron`, which a checkout beside the script may have.
    from megatron_fastmix.megatron.hooks import has_megatron_training, hooked
    from megatron_fastmix.megatron.session import Session

    session = Session(options)
    if has_megatron_training():
        if options.weighting == "sampling":
            # A script that has a training loop of its own never hands its arguments to Megatron's.
            session.begin_without_arguments(rows=True)
        try:
            with hooked(session):
                execute(command)
        finally:
            if session.mixture is None:
                _tell_unapplied(
                    "the script handed no arguments to megatron.training; use "
                    "--fastmix-weighting sampling"
                )
        if session.mixture is not None and not session.has_built:
            _tell_unapplied(_NOTHING_BUILT)
        return
    if options.weighting == "loss":
        raise ConfigError(
            "--fastmix-weighting loss: this environment has no megatron.training, whose arguments "
            "say how losses are averaged; use sampling, or weigh the loss in your own loop"
        )
    session.begin_without_arguments()
    execute(command)
    if not session.has_built:
        _tell_unapplied(_NOTHING_BUILT)


def _tell_unapplied(why: str) -> None:
    if not int(os.environ.get("RANK", "0")):  # the first rank is one of those that build datasets
        print(f"megatron_fastmix.megatron: the mixture was not applied: {why}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_program(main, "megatron_fastmix.megatron"))

"""The command `compare`: whether two learned mixtures differ beyond what seeds move them by."""

from __future__ import annotations

import argparse

from megatron_fastmix.report.comparison import Comparison, Difference, compare
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.text_table import align

EXIT_CODES = {"agree": 0, "differ": 1, "cannot tell": 7}

HELP = "tell whether two mixtures differ beyond the spread over seeds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `compare`."""
    for name in ("run_a", "run_b"):
        parser.add_argument(name, metavar=name.upper(), help="run folder, or mixture.json")
    parser.epilog = (
        "Exit code: 0 where the mixtures do not differ beyond the spread over seeds, 1 where they "
        "do, 7 where nobody can tell, because one of them is of a single search (search with "
        "--seeds 3), 2 for input that cannot be compared."
    )


def run(args: argparse.Namespace) -> int:
    """Prints the comparison; returns the exit code of its verdict."""
    mixtures = [read_mixture(args.run_a), read_mixture(args.run_b)]
    comparison = compare(*mixtures)
    for name, mixture in zip((args.run_a, args.run_b), mixtures, strict=True):
        if not mixture.complete:
            print(f"note: {name} is not finished: {mixture.steps} optimizer steps are done")
    print(describe(comparison, *mixtures))
    return EXIT_CODES[comparison.verdict]


def describe(comparison: Comparison, first: LearnedMixture, second: LearnedMixture) -> str:
    """The table of sources and the verdict."""
    header = ["source", "A", "B", "B - A", "spread A", "spread B"]
    header += ["z"] if comparison.threshold is not None else []
    rows = [_row(source) for source in comparison.sources]
    lines = [
        align(header, rows),
        "",
        _verdict(comparison, first, second),
        f"{comparison.distance:.1%} of the {first.loss_tokens_are} would come from another source.",
        f"A and B are {first.weights_are}. Spread A is {first.spread_is}; spread B "
        f"is {second.spread_is}.",
    ]
    if comparison.threshold is not None:
        lines.append(
            "z is B - A over its standard error; * is beyond the 95 % point of Student's t."
        )
    return "\n".join(lines)


def _row(source: Difference) -> list[str]:
    row = [source.name, f"{source.first:.4f}", f"{source.second:.4f}", f"{source.change:+.4f}"]
    row += [f"{spread:.4f}" for spread in source.spreads]
    if source.z is not None and source.bound is not None:
        row.append(f"{source.z:+.1f}" + ("*" if abs(source.z) > source.bound else " "))
    return row


def _verdict(comparison: Comparison, first: LearnedMixture, second: LearnedMixture) -> str:
    if comparison.ratio is None or comparison.threshold is None:
        single = [name for name, mixture in (("A", first), ("B", second)) if len(mixture.seeds) < 2]
        return (
            f"Cannot tell whether the mixtures differ: {' and '.join(single)} "
            f"{'is' if len(single) == 1 else 'are each'} of a single search, and another seed may "
            "end elsewhere; search with --seeds 3 to know."
        )
    differ = "differ beyond" if comparison.verdict == "differ" else "do not differ beyond"
    return (
        f"The mixtures {differ} the spread over seeds: they lie {comparison.ratio:.2f} times as "
        f"far apart as their standard errors lead one to expect (R; beyond "
        f"{comparison.threshold:.2f} they differ)."
    )

"""The command `compare`: whether two learned mixtures differ beyond their spread."""

from __future__ import annotations

import argparse

from megatron_fastmix.report.comparison import Comparison, compare
from megatron_fastmix.result.mixture_file import MixtureFile, read_mixture
from megatron_fastmix.text_table import align

DIFFERENT = 1

HELP = "tell whether two mixtures differ beyond their spread"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `compare`."""
    for name in ("run_a", "run_b"):
        parser.add_argument(name, metavar=name.upper(), help="run folder, or mixture.json")
    parser.epilog = (
        "Exit code: 0 where the mixtures do not differ beyond their spread, 1 where they do, "
        "2 for input that cannot be compared."
    )


def run(args: argparse.Namespace) -> int:
    """Prints the comparison; 0 where the mixtures agree, 1 where they differ."""
    mixtures = [read_mixture(args.run_a), read_mixture(args.run_b)]
    comparison = compare(*mixtures)
    for name, mixture in zip((args.run_a, args.run_b), mixtures, strict=True):
        if not mixture.complete:
            print(f"note: {name} is not finished: {mixture.steps} optimizer steps are done")
    print(describe(comparison, *mixtures))
    return DIFFERENT if comparison.differ else 0


def describe(comparison: Comparison, first: MixtureFile, second: MixtureFile) -> str:
    """The table of sources and the verdict."""
    rows = [
        (
            source.name,
            f"{source.first:.4f}",
            f"{source.second:.4f}",
            f"{source.change:+.4f}",
            f"{source.uncertainty:.4f}",
            f"{source.z:+.1f}" + ("*" if abs(source.z) > comparison.threshold else " "),
        )
        for source in comparison.sources
    ]
    table = align(("source", "A", "B", "B - A", "uncertainty", "z"), rows)
    verdict = "differ beyond" if comparison.differ else "do not differ beyond"
    lines = [
        table,
        "",
        f"The mixtures {verdict} their spread: they lie {comparison.ratio:.2f} times as far apart "
        f"as their uncertainties lead one to expect (R; beyond {comparison.threshold:.2f} they "
        f"differ). {comparison.distance:.1%} of the samples would come from another source.",
        "* |z| beyond the same bound. Uncertainty is the root sum of squares of both sides: A "
        f"{_kind(first)}, B {_kind(second)}.",
    ]
    if not (first.seeds and second.seeds):
        lines.append(
            "One run's spread is that of its last iterates; other seeds may differ by more: "
            "search with --seeds 3 to know."
        )
    return "\n".join(lines)


def _kind(mixture: MixtureFile) -> str:
    if mixture.seeds:
        return f"the standard error over {len(mixture.seeds)} seeds"
    return "the standard deviation over the averaged part of its run"

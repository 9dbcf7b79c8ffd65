"""The last lines of a search after its table: what the mixture gains, how sure it is, what it cost,
what to type next, and where the page is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.capped import capped_mixture, read_often
from megatron_fastmix.report.commands import next_commands
from megatron_fastmix.report.first_screen import LEVELS, cost_facts, setting_facts
from megatron_fastmix.report.gains import compare_gains
from megatron_fastmix.report.run_record import RunRecord
from megatron_fastmix.report.verdict import are_repeats, judge
from megatron_fastmix.report.write import read_runs
from megatron_fastmix.result.learned_mixture import MANY_EPOCHS, LearnedMixture
from megatron_fastmix.result.rounding import round_weights
from megatron_fastmix.text_table import align

WIDTH = 80
MARKS = {"good": "+", "fair": "!", "poor": "x"}


def closing_lines(folder: Path, mixture: LearnedMixture, page: Path | None) -> str:
    """The text for the search in `folder`, whose result is `mixture`; without metrics what needs
    them is left out. The last line names `page`."""
    parts = [_capped_text(mixture)]
    try:
        runs = read_runs([folder])
    except DataError:
        runs = []
    if runs and are_repeats(runs):
        parts += [_gains_text(runs, mixture), _verdict_text(runs, mixture), _facts_text(runs)]
    commands = next_commands(folder, mixture, {})
    if mixture.answer_only:
        train = next(each for each in commands if "megatron-bridge-sources" in each.text)
        parts.append(f"{train.title}:\n  {train.text}")
    measure = next(each for each in commands if "compare-mixtures" in each.text)
    parts.append(f"{measure.title}:\n  {measure.text}")
    if page is not None:
        parts.append(f"The page: {page.resolve()}")
    return "\n\n".join(part for part in parts if part)


def _capped_text(mixture: LearnedMixture) -> str:
    capped = capped_mixture(mixture) if read_often(mixture) else None
    if capped is None:
        return ""
    # As `export --max-epochs` rounds them.
    ceilings = None if mixture.answer_only else capped.ceilings("loss_tokens", MANY_EPOCHS)
    weights = round_weights(capped.weights, None, ceilings)
    heaviest = sorted(weights, key=lambda name: -capped.weights[name])
    named = ", ".join(f"{name} {weights[name]}" for name in heaviest[:5])
    more = f" and {len(heaviest) - 5} more" if len(heaviest) > 5 else ""
    return f"Capped at {MANY_EPOCHS} epochs the mixture is {named}{more}."


def _gains_text(runs: Sequence[RunRecord], mixture: LearnedMixture) -> str:
    rows, notes = compare_gains(runs, mixture, {})
    if not rows:
        return ""
    cells = [(row.over, row.predicted, row.measured) for row in rows]
    table = align(("target loss lower than on", "predicted", "measured"), cells)
    return "\n".join([table, *map(_wrapped, notes)])


def _verdict_text(runs: Sequence[RunRecord], mixture: LearnedMixture) -> str:
    verdict = judge(runs)
    told = mixture.optimality and mixture.optimality.text  # under the table
    listed = [f for f in verdict.findings if f.text != told or f.level == verdict.level != "good"]
    findings = [_wrapped(f"  {MARKS[found.level]} {found.text}", "    ") for found in listed]
    return "\n".join([LEVELS[verdict.level], *findings])


def _facts_text(runs: Sequence[RunRecord]) -> str:
    lines = []
    for title, facts in (("Cost", cost_facts(runs)), ("Search", setting_facts(runs))):
        if facts:
            told = "; ".join(f"{key} {value}" for key, value in facts.items())
            lines.append(_wrapped(f"{title}: {told}", "  "))
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> str:
    # A name or path that is longer than the line stays whole, to be copied.
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )

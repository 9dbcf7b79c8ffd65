"""The report's first screen: the mixture to use, how sure it is, and what it cost."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from html import escape

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.megatron import command_line
from megatron_fastmix.report.durations import duration
from megatron_fastmix.report.run_record import RunRecord
from megatron_fastmix.report.verdict import Verdict
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.run.folder import SEED_PREFIX

LEVELS = {
    "good": "Sure, as far as one can tell from the run.",
    "fair": "Usable, with reservations.",
    "poor": "Not to be relied on yet.",
}

FIRST_ROWS = 10
"""Sources on the first screen; the others can be unfolded."""


def answer(runs: Sequence[RunRecord], verdict: Verdict | None) -> str:
    """The first section. Without a verdict the runs are different searches, shown side by side."""
    if verdict is None:
        left = (
            '<div class="panel wide"><h2>Learned weights side by side</h2>'
            f"{_side_by_side(runs)}</div>"
        )
        return f'<section class="answer">{left}{_cost(runs)}{_targets(runs)}</section>'
    found = verdict.mixture
    if found is None:
        left = (
            "<h2>No result yet</h2><p>mixture.json is written with the first checkpoint; "
            "the curves below are what is logged so far.</p>"
        )
        lead = ""
    else:
        what = "to use" if found.complete else f"so far, at step {found.steps:,}"
        seeds = f", the average of {len(found.seeds)} seeds" if found.seeds else ""
        left = f"<h2>The mixture {what}{seeds}</h2>{_mixture(found)}{_how_to_use(runs, found)}"
        lead = _lead(runs, verdict, found)
    return (
        f'{lead}<section class="answer"><div class="panel">{left}</div>'
        f'<div class="side">{_sureness(verdict)}{_targets(runs)}{_cost(runs)}</div></section>'
    )


def _lead(runs: Sequence[RunRecord], verdict: Verdict, found: LearnedMixture) -> str:
    """The whole answer in three sentences."""
    weights = found.weights
    order = sorted(weights, key=lambda name: -weights[name])
    named = [f"{name} {weights[name]:.2f}" for name in order[:3]]
    if len(order) > 3:
        named.append(f"{len(order) - 3} more")
    mixture = f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]
    cost = [value for key, value in _cost_facts(runs) if key in ("time", "training FLOPs")]
    spent = f" It cost {' and '.join(cost)} FLOPs." if len(cost) == 2 else ""
    spent = f" It cost {cost[0]}." if len(cost) == 1 else spent
    return (
        f'<p class="lead"><b>{escape(mixture)}.</b> <span class="{verdict.level}">'
        f"{LEVELS[verdict.level]}</span>{escape(spent)}</p>"
    )


def _mixture(found: LearnedMixture) -> str:
    sources = sorted(found.sources, key=lambda source: -source.weight)
    ends = [max(s.weight + s.weight_std, s.initial_weight) for s in sources]
    top = min(1.0, max(ends))
    epochs, tokens = found.epochs, found.loss_tokens_are
    row_shares = found.rounded("rows")
    rows = []
    for source in sources:
        weight, spread, start = source.weight, source.weight_std, source.initial_weight
        low, high = max(0.0, weight - spread), min(top, weight + spread)
        bar = (
            f'<div class="bar" aria-hidden="true"><i style="width:{weight / top:.2%}"></i>'
            f'<s style="left:{low / top:.2%};width:{(high - low) / top:.2%}"></s>'
            f'<b style="left:{start / top:.2%}"></b></div>'
        )
        cells = f"<td><b>{weight:.3f}</b> ± {spread:.3f}</td>"
        if found.answer_only:
            cells += f"<td>{row_shares[source.name]}</td>"
        cells += (
            f'<td class="optional">{start:.3f}</td>'
            f'<td class="optional">{_tokens(weight * found.token_budget)}</td>'
            f'<td class="optional">{_tokens(source.size.loss_tokens)}</td>'
            f"<td>{epochs[source.name]:.2f}</td>"
        )
        rows.append(f'<tr><th scope="row">{escape(source.name)}{bar}</th>{cells}</tr>')
    share = '<th scope="col">share<br>of rows</th>' if found.answer_only else ""
    head = (
        f'<thead><tr><th scope="col">source</th><th scope="col">weight</th>{share}'
        f'<th scope="col" class="optional">started at</th>'
        f'<th scope="col" class="optional">{tokens}<br>to train on</th>'
        f'<th scope="col" class="optional">{tokens}<br>there are</th>'
        '<th scope="col">epochs</th></tr></thead>'
    )
    counted = "blends for Megatron have the shares of rows. " if found.answer_only else ""
    return (
        f"{_folded(head, rows)}"
        f'<p class="note">Weights are {found.weights_are}; {counted}'
        f"{tokens[0].upper()}{tokens[1:]} and epochs are those of a run of "
        f"{_tokens(found.token_budget)} {tokens}. "
        f"± (the thin line) is {found.spread_is}; "
        "the orange mark is the weight at the start.</p>"
    )


def _folded(head: str, rows: list[str]) -> str:
    """A table of `rows`; beyond the first few they can be unfolded."""
    first, rest = rows[:FIRST_ROWS], rows[FIRST_ROWS:]
    table = f"<table>{head}<tbody>{''.join(first)}</tbody></table>"
    if rest:
        table += (
            f"<details><summary>{len(rest)} more sources</summary><table>{head}"
            f"<tbody>{''.join(rest)}</tbody></table></details>"
        )
    return table


def _how_to_use(runs: Sequence[RunRecord], found: LearnedMixture) -> str:
    folders = {run.path.parent if len(runs) == 1 else run.path.parent.parent for run in runs}
    seeds = all(run.path.parent.name.startswith(SEED_PREFIX) for run in runs)
    folder = str(folders.pop()) if len(runs) == 1 or (seeds and len(folders) == 1) else "RUN"
    command = f"megatron-fastmix export {shlex.quote(folder)} --format list"
    try:
        flags = command_line(make_blend(found)).rstrip()
    except DataError:  # a path that Megatron cannot be told
        return f'<pre tabindex="0">{escape(command)}</pre>'
    return (
        f'<pre tabindex="0" aria-label="Megatron flags">{escape(flags)}</pre>'
        f'<p class="note">For Megatron; other tools: <code>{escape(command)}</code></p>'
    )


def _sureness(verdict: Verdict) -> str:
    items = "".join(
        f'<li class="is-{finding.level}">{escape(finding.text)}</li>'
        for finding in verdict.findings
    )
    return (
        f'<div class="panel"><h2>How sure it is</h2><p class="verdict {verdict.level}">'
        f'{LEVELS[verdict.level]}</p><ul class="findings">{items}</ul></div>'
    )


def _targets(runs: Sequence[RunRecord]) -> str:
    rows = []
    for run in runs:
        for target in run.targets:
            losses = run.by_name("outer", "target_loss", target)
            if losses:
                name = f"{run.name}: {target}" if len(runs) > 1 else target
                rows.append(
                    f'<tr><th scope="row">{escape(name)}</th><td>{losses[0][1]:.3f}</td>'
                    f"<td>{losses[-1][1]:.3f}</td></tr>"
                )
    if not rows:
        return ""
    return (
        '<div class="panel"><h2>The proxy on the targets</h2><table><thead><tr>'
        '<th scope="col">loss, nats per token</th><th scope="col">first</th>'
        f'<th scope="col">last</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _cost(runs: Sequence[RunRecord]) -> str:
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in _cost_facts(runs))
    return (
        f'<div class="panel"><h2>What it cost</h2><dl class="cost">{items or "<dt>not logged</dt>"}'
        "</dl></div>"
    )


def _cost_facts(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    seconds = math.fsum(value for run in runs for value in run.seconds.values())
    tokens = sum(run.trained_tokens or 0 for run in runs)
    flops = [run.training_flops for run in runs if run.training_flops is not None]
    facts = []
    if seconds:
        outer = math.fsum(run.seconds.get("outer", 0.0) for run in runs)
        facts += [
            ("time", duration(seconds)),
            ("for the mixture", f"{outer / seconds:.0%} of it"),
        ]
    if tokens:
        facts.append(("proxy's tokens", _tokens(tokens)))
    if len(flops) == len(runs):
        facts.append(("training FLOPs", f"{math.fsum(flops):.2g}"))
    return facts


def _side_by_side(runs: Sequence[RunRecord]) -> str:
    found = [{s.name: s for s in run.mixture.sources} if run.mixture else {} for run in runs]
    names = list(dict.fromkeys(name for run in runs for name in run.sources))
    names.sort(key=lambda name: -max(by[name].weight if name in by else 0.0 for by in found))
    rows = []
    for name in names:
        cells = "".join(
            f"<td><b>{by[name].weight:.3f}</b> <span>±&nbsp;{by[name].weight_std:.3f}</span></td>"
            if name in by
            else "<td>–</td>"
            for by in found
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    return (
        '<div class="scroll many" tabindex="0"><table><thead><tr><th scope="col">source</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">These are different searches, so they are not averaged; '
        "± is the standard deviation over the averaged part of each run. "
        "<code>megatron-fastmix compare</code> tells whether two of them differ.</p>"
    )


def _tokens(count: float | None) -> str:
    """Such as `13.7 M`."""
    if count is None:
        return "–"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"

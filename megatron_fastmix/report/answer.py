"""The report's first screen: the mixture to use, how sure it is, and what it cost."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from html import escape

from megatron_fastmix.export.blend import round_weights
from megatron_fastmix.report.durations import duration
from megatron_fastmix.report.run_record import RunRecord
from megatron_fastmix.report.verdict import Verdict, learned
from megatron_fastmix.result.mixture_file import epochs_implied

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
    average = f", the average of {verdict.repeats} seeds" if verdict.repeats > 1 else ""
    what = "to use" if all(run.complete for run in runs) else "so far"
    return (
        f'{_lead(runs, verdict)}<section class="answer"><div class="panel">'
        f"<h2>The mixture {what}{average}</h2>"
        f"{_mixture(runs[0], verdict)}{_how_to_use(runs, verdict)}</div>"
        f'<div class="side">{_sureness(verdict)}{_targets(runs)}{_cost(runs)}</div></section>'
    )


def _lead(runs: Sequence[RunRecord], verdict: Verdict) -> str:
    """The whole answer in three sentences."""
    order = sorted(verdict.weights, key=lambda name: -verdict.weights[name])
    named = [f"{name} {verdict.weights[name]:.2f}" for name in order[:3]]
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


def _mixture(run: RunRecord, verdict: Verdict) -> str:
    budget = run.token_budget
    ends = [weight + verdict.spread[name] for name, weight in verdict.weights.items()]
    top = min(1.0, max(*ends, *verdict.initial.values()))
    known = bool(run.tokens) and budget is not None
    rows = []
    for name in sorted(verdict.weights, key=lambda name: -verdict.weights[name]):
        weight, spread = verdict.weights[name], verdict.spread[name]
        start = verdict.initial[name]
        low, high = max(0.0, weight - spread), min(top, weight + spread)
        bar = (
            f'<div class="bar" aria-hidden="true"><i style="width:{weight / top:.2%}"></i>'
            f'<s style="left:{low / top:.2%};width:{(high - low) / top:.2%}"></s>'
            f'<b style="left:{start / top:.2%}"></b></div>'
        )
        cells = f"<td><b>{weight:.3f}</b> ± {spread:.3f}</td>"
        cells += f'<td class="optional">{start:.3f}</td>'
        if known and budget is not None:
            tokens = run.tokens[name]
            cells += (
                f'<td class="optional">{_tokens(weight * budget)}</td>'
                f'<td class="optional">{_tokens(tokens)}</td>'
                f"<td>{epochs_implied(weight, tokens, budget):.2f}</td>"
            )
        rows.append(f'<tr><th scope="row">{escape(name)}{bar}</th>{cells}</tr>')
    more = (
        '<th scope="col" class="optional">tokens<br>to train on</th>'
        '<th scope="col" class="optional">tokens<br>there are</th><th scope="col">epochs</th>'
        if known
        else ""
    )
    head = (
        '<thead><tr><th scope="col">source</th><th scope="col">weight</th>'
        f'<th scope="col" class="optional">started at</th>{more}</tr></thead>'
    )
    spread_of = (
        f"the standard deviation over {verdict.repeats} seeds"
        if verdict.repeats > 1
        else "the standard deviation over the averaged part of the run"
    )
    meaning = (
        f"A weight is a share of training tokens. Tokens and epochs are those of a run of "
        f"{_tokens(budget)} tokens. "
        if budget is not None and known
        else "A weight is a share of training tokens. "
    )
    return (
        f"{_folded(head, rows)}"
        f'<p class="note">{meaning}± (the thin line) is {spread_of}; '
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


def _how_to_use(runs: Sequence[RunRecord], verdict: Verdict) -> str:
    folders = {run.path.parent if len(runs) == 1 else run.path.parent.parent for run in runs}
    seeds = all(run.path.parent.name.startswith("seed-") for run in runs)
    folder = str(folders.pop()) if len(runs) == 1 or (seeds and len(folders) == 1) else "RUN"
    command = f"megatron-fastmix export {shlex.quote(folder)} --format list"
    paths = {
        source["name"]: source["path"]
        for source in runs[0].config.get("sources", [])
        if isinstance(source, dict) and "name" in source and "path" in source
    }
    if paths.keys() >= verdict.weights.keys():
        rounded = round_weights(verdict.weights)
        pairs = [
            word
            for name, weight in rounded.items()
            if float(weight) > 0
            for word in (weight, str(paths[name]))
        ]
        flags = shlex.join(["--data-path", *pairs])
        return (
            f'<pre tabindex="0" aria-label="Megatron flags">{escape(flags)}</pre>'
            f'<p class="note">For Megatron; other tools: <code>{escape(command)}</code></p>'
        )
    return f'<pre tabindex="0">{escape(command)}</pre>'


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
    means = [learned(run) for run in runs]
    names = list(dict.fromkeys(name for run in runs for name in run.sources))
    names.sort(key=lambda name: -max(mean.get(name, 0.0) for mean, _ in means))
    rows = []
    for name in names:
        cells = "".join(
            f"<td><b>{mean[name]:.3f}</b> <span>±&nbsp;{spread[name]:.3f}</span></td>"
            if name in mean
            else "<td>–</td>"
            for mean, spread in means
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

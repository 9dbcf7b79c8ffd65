"""The report: one HTML page that needs nothing but itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from importlib.resources import files

import yaml

from megatron_fastmix.report import palette
from megatron_fastmix.report.answer import answer
from megatron_fastmix.report.charts import Chart
from megatron_fastmix.report.configuration import differences
from megatron_fastmix.report.durations import duration
from megatron_fastmix.report.run_record import RunRecord
from megatron_fastmix.report.svg import draw
from megatron_fastmix.report.verdict import Verdict

PARTS = {
    "inner": "inner steps",
    "outer": "outer steps",
    "data": "waiting for data",
    "checkpoint": "checkpoints",
}


def render_page(
    runs: Sequence[RunRecord],
    verdict: Verdict | None,
    sections: dict[str, list[Chart]],
    *,
    reload_seconds: int | None = None,
) -> str:
    """The whole page.

    Args:
        verdict: that on the runs taken together; None where they are different searches.
        sections: charts by heading.
        reload_seconds: the page loads itself again after this long; None for a finished run.
    """
    title = f"Mixture of {runs[0].name}" if len(runs) == 1 else f"Mixtures of {len(runs)} runs"
    refresh = f'<meta http-equiv="refresh" content="{reload_seconds}">' if reload_seconds else ""
    bodies = {heading: _charts(charts) for heading, charts in sections.items()}
    bodies["Where the time went"] = _time_split(runs)
    bodies["Configuration"] = _configuration(runs)
    links = "".join(f'<a href="#s{i}">{escape(heading)}</a>' for i, heading in enumerate(bodies))
    parts = "".join(
        f'<section id="s{i}"><h2>{escape(heading)}</h2>{body}</section>'
        for i, (heading, body) in enumerate(bodies.items())
    )
    assets = files("megatron_fastmix.report")
    style = palette.css() + (assets / "page.css").read_text(encoding="utf-8")
    script = (assets / "page.js").read_text(encoding="utf-8")
    written = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}<link rel="icon" href="data:,"><title>{escape(title)}</title>
<style>{style}</style></head>
<body><header><h1>{escape(title)}</h1>
<p class="status">{escape(" · ".join(_status(runs)))}</p></header>
<main>{answer(runs, verdict)}
<nav aria-label="Sections">{links}</nav>
{parts}</main>
<footer>Written {written} from mixture.json and metrics.jsonl by megatron_fastmix.</footer>
<script>{script}</script></body></html>
"""


def _charts(charts: Sequence[Chart]) -> str:
    """The charts of a section under their notes, so that charts side by side are level."""
    notes = dict.fromkeys(chart.note for chart in charts if chart.note)
    texts = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f'{texts}<div class="charts">{"".join(map(draw, charts))}</div>'


def _status(runs: Sequence[RunRecord]) -> list[str]:
    texts = []
    for run in runs:
        state = "finished" if run.complete else "stopped" if run.ended else "unfinished"
        of = f" of {run.train_iters:,}" if run.train_iters and not run.complete else ""
        name = f"{run.name}: " if len(runs) > 1 else ""
        texts.append(f"{name}{state}, {run.step:,}{of} steps, {len(run.outer):,} of the mixture")
    return texts


def _time_split(runs: Sequence[RunRecord]) -> str:
    rows = []
    for run in runs:
        total = sum(run.seconds.values())
        if not total:
            continue
        bar = "".join(
            f'<span style="width:{run.seconds[part] / total:.2%};background:var(--c{i})"></span>'
            for i, part in enumerate(PARTS)
            if part in run.seconds
        )
        cells = "".join(
            f"<td>{run.seconds.get(part, 0) / total:.1%}</td>"
            if part in run.seconds
            else "<td>–</td>"
            for part in PARTS
        )
        rows.append(
            f'<tr><th scope="row">{escape(run.name)}<div class="split" aria-hidden="true">{bar}'
            f"</div></th>{cells}<td>{duration(total)}</td></tr>"
        )
    if not rows:
        return "<p>The metrics hold no times.</p>"
    head = "".join(
        f'<th scope="col"><span style="color:var(--c{i})">■</span> {text}</th>'
        for i, text in enumerate(PARTS.values())
    )
    return (
        '<div class="panel scroll" tabindex="0"><table class="times"><thead><tr>'
        f'<th scope="col">run</th>{head}<th scope="col">all</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _configuration(runs: Sequence[RunRecord]) -> str:
    texts = []
    differing = differences(runs)
    if differing:
        head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
        rows = "".join(
            f'<tr><th scope="row">{escape(key)}</th>'
            + "".join(f"<td>{escape(str(value))}</td>" for value in values)
            + "</tr>"
            for key, values in differing.items()
        )
        texts.append(
            '<h3>What differs</h3><div class="scroll" tabindex="0"><table><thead><tr>'
            f'<th scope="col">key</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        )
    for run in runs:
        dumped = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
        shown = escape(dumped) if run.config else "The metrics hold no configuration."
        texts.append(
            f"<details><summary>Resolved configuration of {escape(run.name)}</summary>"
            f'<pre tabindex="0">{shown}</pre></details>'
        )
    return f'<div class="panel">{"".join(texts)}</div>'

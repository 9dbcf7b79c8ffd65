"""The report: one HTML page that needs nothing but itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import yaml
from markupsafe import Markup

from megatron_fastmix.report import palette
from megatron_fastmix.report.chart import Chart
from megatron_fastmix.report.charts import MANY
from megatron_fastmix.report.configuration import differences
from megatron_fastmix.report.first_screen import (
    LEVELS,
    cost_facts,
    first_screen,
    setting_facts,
    target_losses,
)
from megatron_fastmix.report.number_texts import decimals
from megatron_fastmix.report.run_record import RunRecord
from megatron_fastmix.report.svg import draw
from megatron_fastmix.report.templating import render
from megatron_fastmix.report.verdict import Verdict

PARTS = {
    "inner": "inner steps",
    "outer": "outer steps",
    "data": "waiting for data",
    "checkpoint": "checkpoints",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page below the first screen."""

    heading: str
    notes: list[str] = field(default_factory=list)
    charts: list[Markup] = field(default_factory=list)
    times: list[tuple[str, dict[str, float], float]] | None = None
    """By run: shares of its time by part, and seconds in all."""
    configurations: list[tuple[str, str]] | None = None


def render_page(
    runs: Sequence[RunRecord],
    verdict: Verdict | None,
    sections: dict[str, list[Chart]],
    *,
    reload_seconds: int | None = None,
    against: Mapping[str, Mapping[str, float]] | None = None,
    path_map: Mapping[str, str] | None = None,
) -> str:
    """The whole page.

    Args:
        verdict: that on the runs taken together; None where they are different searches.
        sections: charts by heading.
        reload_seconds: the page loads itself again after this long; None for a finished run.
        against: further mixtures that the result is compared with, weights by source, by name.
        path_map: beginnings of paths in the commands, and what stands for them elsewhere.
    """
    title = f"Mixture of {runs[0].name}" if len(runs) == 1 else f"Mixtures of {len(runs)} runs"
    assets = files("megatron_fastmix.report")
    style = palette.css() + (assets / "page.css").read_text(encoding="utf-8")
    script = (assets / "page.js").read_text(encoding="utf-8")
    values = {
        "title": title,
        "reload_seconds": reload_seconds,
        "style": Markup(style),
        "script": Markup(script),
        "status": _status(runs),
        "verdict": verdict,
        "targets": target_losses(runs),
        "sections": [*map(_section, sections.items()), _time_split(runs), _configuration(runs)],
        "parts": PARTS,
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "runs": runs,
    }
    if verdict is None:
        return render("page.html", **values, **_side_by_side(runs))
    found = verdict.mixture
    screen = None
    if found is not None:
        screen = first_screen(runs, found, against=against or {}, path_map=path_map or {})
    return render(
        "page.html",
        **values,
        screen=screen,
        level_text=LEVELS[verdict.level],
        cost=cost_facts(runs),
        setting=setting_facts(runs),
    )


def _section(item: tuple[str, list[Chart]]) -> Section:
    """The charts of a section under their notes, so that charts side by side are level."""
    heading, charts = item
    notes = dict.fromkeys(chart.note for chart in charts if chart.note)
    return Section(heading=heading, notes=list(notes), charts=[draw(chart) for chart in charts])


def _status(runs: Sequence[RunRecord]) -> list[str]:
    texts = []
    for run in runs:
        state = "finished" if run.complete else "stopped" if run.ended else "unfinished"
        of = f" of {run.train_iters:,}" if run.train_iters and not run.complete else ""
        name = f"{run.name}: " if len(runs) > 1 else ""
        texts.append(f"{name}{state}, {run.step:,}{of} steps, {len(run.outer):,} of the mixture")
    return texts


def _side_by_side(runs: Sequence[RunRecord]) -> dict[str, object]:
    """Weights, costs and configurations of different searches."""
    found = [{s.name: s for s in run.mixture.sources} if run.mixture else {} for run in runs]
    names = list(dict.fromkeys(name for run in runs for name in run.sources))
    names.sort(key=lambda name: -max(by[name].weight if name in by else 0.0 for by in found))
    places = decimals(source.weight_std for by in found for source in by.values())
    rows = []
    for name in names:
        weights = [by[name].weight if name in by else None for by in found]
        cells = ["–" if weight is None else f"{weight:.{places}f}" for weight in weights]
        first, last = weights[0], weights[-1]
        change = "–" if first is None or last is None else f"{last - first:+.{places}f}"
        rows.append((name, cells, change))
    each = [cost_facts([run]) for run in runs]
    keys = dict.fromkeys(key for facts in each for key in facts)
    return {
        "rows": rows,
        "costs": {key: [facts.get(key, "–") for facts in each] for key in keys},
        "differing": differences(runs),
    }


def _time_split(runs: Sequence[RunRecord]) -> Section:
    times = []
    for run in runs:
        total = sum(run.seconds.values())
        if total:
            shares = {part: run.seconds[part] / total for part in PARTS if part in run.seconds}
            times.append((run.name, shares, total))
    return Section(heading="Where the time went", times=times)


def _without_many(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration; of many sources only their number, which would be most of the page."""
    sources = config.get("sources")
    if not isinstance(sources, list) or len(sources) <= MANY:
        return config
    return config | {"sources": f"{len(sources):,}, listed in the run folder's configuration"}


def _configuration(runs: Sequence[RunRecord]) -> Section:
    return Section(
        heading="Configuration",
        configurations=[
            (
                run.name,
                yaml.safe_dump(_without_many(run.config), sort_keys=False, allow_unicode=True)
                if run.config
                else "The metrics hold no configuration.",
            )
            for run in runs
        ],
    )

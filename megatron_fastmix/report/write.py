"""Writing the report of one or more runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.report.chart import Chart
from megatron_fastmix.report.charts import build_charts
from megatron_fastmix.report.page import render_page
from megatron_fastmix.report.run_record import RunRecord, find_runs, read_run
from megatron_fastmix.report.verdict import Verdict, are_repeats, judge
from megatron_fastmix.run.folder import PAGE_NAME


def read_runs(paths: Sequence[str | Path]) -> list[RunRecord]:
    """The runs at `paths`, with names that tell them apart."""
    found = find_runs(paths)
    names = [path.resolve().parent.name for path in found]
    if len(set(names)) < len(names):
        names = [str(path.parent) for path in found]
    return [read_run(path, name) for path, name in zip(found, names, strict=True)]


def write_report(
    runs: Sequence[RunRecord],
    folder: str | Path,
    *,
    pictures: bool = True,
    reload_seconds: int | None = None,
    against: Mapping[str, Mapping[str, float]] | None = None,
    path_map: Mapping[str, str] | None = None,
) -> Path:
    """Writes report.html, and a PNG for each chart, into `folder`; returns the page's path.

    Runs that differ in nothing but the seed are averaged; others are shown side by side.
    `against` and `path_map`: see `render_page`.
    """
    verdict: Verdict | None = judge(runs) if are_repeats(runs) else None
    sections = build_charts(runs, _heaviest_first(runs))
    page = Path(folder) / PAGE_NAME
    text = render_page(
        runs,
        verdict,
        sections,
        reload_seconds=reload_seconds,
        against=against,
        path_map=path_map,
    )
    write_atomically(page, text)
    if pictures:
        _write_pictures([chart for charts in sections.values() for chart in charts], folder)
    return page


def _write_pictures(charts: Sequence[Chart], folder: str | Path) -> None:
    from megatron_fastmix.report.plots import plot_chart  # matplotlib takes a second

    for chart in charts:
        plot_chart(chart, folder)


def _heaviest_first(runs: Sequence[RunRecord]) -> list[str]:
    """The sources of all runs by their largest weight: the learned one, or the newest without."""
    largest: dict[str, float] = {}
    for run in runs:
        for name, weight in (run.mixture.weights if run.mixture else run.tail[-1]).items():
            largest[name] = max(largest.get(name, 0.0), weight)
    return sorted(largest, key=lambda name: -largest[name])

"""The files that every run folder ends up with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.errors import DataError
from megatron_fastmix.export import megatron
from megatron_fastmix.export.blend import Blend, make_blend
from megatron_fastmix.report.write import read_runs, write_report
from megatron_fastmix.result.mixture_file import MixtureFile
from megatron_fastmix.run.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class RunArtifacts:
    """Where the results of a run lie."""

    mixture: Path
    blend_txt: Path | None
    """None where a source's path has white space, which `--data-args-path` cannot express."""
    blend_json: Path | None
    """None where a path begins or ends with white space, which Megatron strips."""
    picture: Path | None
    """None before the first outer step, and where the run folder has no metrics."""
    report: Path | None
    """The page `report/report.html`; None where there are no metrics to write it from."""


def write_run_artifacts(run_dir: str | Path, mixture: MixtureFile) -> RunArtifacts:
    """Writes mixture.json, blend.txt, blend.json, weights.png and the report into `run_dir`.

    Each is written atomically; picture and report are drawn from `metrics.jsonl` in the same
    folder, or in its folders of seeds. What cannot be written is
    removed: a file of an earlier part of the run must not pass for this result's.
    """
    run = RunFolder(Path(run_dir))
    # The result first: nothing that follows can be worth more than it.
    mixture.write(run.mixture)
    blend = make_blend(mixture)
    return RunArtifacts(
        mixture=run.mixture,
        blend_txt=_write_blend(run.blend_txt, megatron.data_args, blend),
        blend_json=_write_blend(run.blend_json, megatron.per_split, blend),
        picture=_draw(run.picture, run.metrics, mixture),
        report=_report(run),
    )


def _write_blend(path: Path, render: Callable[[Blend], str], blend: Blend) -> Path | None:
    try:
        text = render(blend)
    except DataError:
        path.unlink(missing_ok=True)
        return None
    write_atomically(path, text)
    return path


def _draw(path: Path, metrics: Path, mixture: MixtureFile) -> Path | None:
    if mixture.outer_steps == 0 or not metrics.exists():
        path.unlink(missing_ok=True)
        return None
    from megatron_fastmix.report.plots import plot_weights  # matplotlib takes a second

    plot_weights(metrics, path, mixture)
    return path


def _report(run: RunFolder) -> Path | None:
    try:
        return write_report(read_runs([run.path]), run.report, pictures=False)
    except DataError:
        run.page.unlink(missing_ok=True)
        return None

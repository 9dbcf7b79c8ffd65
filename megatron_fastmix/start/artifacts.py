"""The files that every run folder ends up with."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.run_files import MixtureFiles, write_mixture_files
from megatron_fastmix.report.closing import closing_lines
from megatron_fastmix.report.summary import final_table
from megatron_fastmix.report.write import read_runs, write_report
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.storage import describe


@dataclass(frozen=True, kw_only=True)
class RunArtifacts(MixtureFiles):
    """Where the results of a run lie."""

    picture: Path | None
    """None before the first outer step, and where the run folder has no metrics."""
    report: Path | None
    """The page `report/report.html`; None where there are no metrics to write it from."""


def write_run_artifacts(run_dir: str | Path, mixture: LearnedMixture) -> RunArtifacts:
    """Writes mixture.json, blend.txt, blend.json, weights.png and the report into `run_dir`.

    Each is written atomically; picture and report are drawn from `metrics.jsonl` in the same
    folder, or in its folders of seeds. What cannot be written is removed: a file of an earlier
    part of the run must not pass for this result's.
    """
    run = RunFolder(Path(run_dir))
    return RunArtifacts(
        **vars(write_mixture_files(run.path, mixture)),
        picture=_draw(run.picture, run.metrics, mixture),
        report=_report(run, mixture),
    )


def result_text(run_dir: Path, mixture: LearnedMixture, files: RunArtifacts) -> str:
    """What a search ends with: the table and the flags, then how sure the result is, what it cost
    and where the page is."""
    table = final_table(mixture, blend_txt=files.blend_txt, blend_json=files.blend_json)
    return f"{table}\n\n{closing_lines(run_dir, mixture, files.report)}"


def _draw(path: Path, metrics: Path, mixture: LearnedMixture) -> Path | None:
    if mixture.outer_steps == 0 or not metrics.exists():
        path.unlink(missing_ok=True)
        return None
    from megatron_fastmix.report.plots import plot_weights  # matplotlib takes a second

    try:
        plot_weights(metrics, path, mixture)
    except (OSError, DataError) as error:
        _tell_without(path, error)
        return None
    return path


def _report(run: RunFolder, mixture: LearnedMixture) -> Path | None:
    try:
        return write_report(read_runs([run.path]), run.report, pictures=False)
    except (OSError, DataError) as error:
        if mixture.outer_steps == 0 and not run.metrics.exists():  # no search
            run.page.unlink(missing_ok=True)
            return None
        _tell_without(run.page, error)
        return None


def _tell_without(path: Path, error: OSError | DataError) -> None:
    """Says why there is no picture or page, and removes an earlier one. The result is there."""
    reason = describe(error, path) if isinstance(error, OSError) else error
    print(f"megatron-fastmix: {path} is not written: {reason}", file=sys.stderr)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)

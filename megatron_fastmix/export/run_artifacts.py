"""The files that every run folder ends up with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.errors import DataError
from megatron_fastmix.export import megatron
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.mixture_file import MixtureFile


@dataclass(frozen=True, kw_only=True)
class RunArtifacts:
    """Where the results of a run lie."""

    mixture: Path
    blend_txt: Path | None
    """None where a source's path has white space, which `--data-args-path` cannot express."""
    blend_json: Path
    picture: Path | None
    """None where the run folder has no metrics."""


def write_run_artifacts(run_dir: str | Path, mixture: MixtureFile) -> RunArtifacts:
    """Writes mixture.json, blend.txt, blend.json and weights.png into `run_dir`, each atomically.

    The picture is drawn from `metrics.jsonl` in the same folder.
    """
    run_dir = Path(run_dir)
    # The result first: nothing that follows can be worth more than it.
    mixture.write(run_dir / "mixture.json")
    blend = make_blend(mixture)
    write_atomically(run_dir / "blend.json", megatron.per_split(blend))
    blend_txt: Path | None = run_dir / "blend.txt"
    try:
        text = megatron.data_args(blend)
    except DataError:
        # A blend.txt of an earlier run must not pass for this one's.
        (run_dir / "blend.txt").unlink(missing_ok=True)
        blend_txt = None
    else:
        write_atomically(run_dir / "blend.txt", text)
    picture: Path | None = run_dir / "weights.png"
    metrics = run_dir / "metrics.jsonl"
    if metrics.exists():
        from megatron_fastmix.report.plots import plot_weights  # matplotlib takes a second

        plot_weights(metrics, run_dir / "weights.png", mixture=mixture)
    else:
        picture = None
    return RunArtifacts(
        mixture=run_dir / "mixture.json",
        blend_txt=blend_txt,
        blend_json=run_dir / "blend.json",
        picture=picture,
    )

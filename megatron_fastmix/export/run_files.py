"""What a run folder always has of its mixture: `mixture.json`, `blend.txt` and `blend.json`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.errors import DataError
from megatron_fastmix.export import megatron
from megatron_fastmix.export.blend import Blend, make_blend
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.run.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class MixtureFiles:
    """Where they lie."""

    mixture: Path
    blend_txt: Path | None
    """None where a source's path has white space, which `--data-args-path` cannot express."""
    blend_json: Path | None
    """None where a path begins or ends with white space, which Megatron strips."""


def write_mixture_files(run_dir: str | Path, mixture: LearnedMixture) -> MixtureFiles:
    """Writes all three, each atomically. A blend that cannot be written is removed: one of an
    earlier part of the run must not pass for this mixture's."""
    run = RunFolder(Path(run_dir))
    # The result first: nothing that follows can be worth more than it.
    write_mixture(run.mixture, mixture)
    blend = make_blend(mixture)
    return MixtureFiles(
        mixture=run.mixture,
        blend_txt=_write(run.blend_txt, megatron.data_args, blend),
        blend_json=_write(run.blend_json, megatron.per_split, blend),
    )


def _write(path: Path, render: Callable[[Blend], str], blend: Blend) -> Path | None:
    try:
        text = render(blend)
    except DataError:
        path.unlink(missing_ok=True)
        return None
    write_atomically(path, text)
    return path

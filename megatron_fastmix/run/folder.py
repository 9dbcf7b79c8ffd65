"""The run folder: where each file of a search lies. Nothing else spells these names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SEED_PREFIX = "seed-"
PAGE_NAME = "report.html"
"""The report, in whichever folder it is written to."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one search, or of several with different seeds."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def sources(self) -> Path:
        """Licence, origin, size and checksums of every dataset, from its manifest."""
        return self.path / "sources.json"

    @property
    def lock(self) -> Path:
        """Locked while rank 0 of a search lives."""
        return self.path / "lock"

    @property
    def metrics(self) -> Path:
        """What happened, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """A folder for each checkpoint."""
        return self.path / "checkpoints"

    @property
    def index_cache(self) -> Path:
        """Megatron's dataset indices, where the configuration names no other place."""
        return self.path / "cache"

    @property
    def mixture(self) -> Path:
        """The result; of an unfinished search, as of its last checkpoint."""
        return self.path / "mixture.json"

    @property
    def blend_txt(self) -> Path:
        """For Megatron's --data-args-path."""
        return self.path / "blend.txt"

    @property
    def blend_json(self) -> Path:
        """For Megatron's --per-split-data-args-path."""
        return self.path / "blend.json"

    @property
    def picture(self) -> Path:
        """The weights over the run."""
        return self.path / "weights.png"

    @property
    def report(self) -> Path:
        """Folder of the page and its pictures."""
        return self.path / "report"

    @property
    def page(self) -> Path:
        """The report."""
        return self.report / PAGE_NAME

    @property
    def comparisons(self) -> list[Path]:
        """Rows of target models that were trained on its mixture and on others, where there are."""
        return sorted(self.path.glob("*/rows.jsonl"))

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

    def seed(self, seed: int) -> RunFolder:
        """The search with this seed, where several are averaged."""
        return RunFolder(self.path / f"{SEED_PREFIX}{seed}")

    def seeds(self) -> list[RunFolder]:
        """The searches of other seeds in this folder, by name."""
        return [RunFolder(path) for path in sorted(self.path.glob(f"{SEED_PREFIX}*"))]

    def request_stop(self) -> None:
        """Asks the ranks of a running search, on whichever host, to write a checkpoint and end."""
        self.stop.touch()

    def stop_requested(self) -> bool:
        """Whether `request_stop` was called; no, where the file system fails, which is no reason
        to lose the step: its next write tells."""
        try:
            return self.stop.exists()
        except OSError:
            return False

    def clear_stop(self) -> None:
        """Takes a request to stop back."""
        self.stop.unlink(missing_ok=True)

    @property
    def stop(self) -> Path:
        """Its presence asks for a stop."""
        return self.path / "stop"

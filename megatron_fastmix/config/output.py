"""What a run writes."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_fastmix.config.require import require


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What the run leaves behind, and how often."""

    log_interval: int = 10
    """Steps between two lines of progress where there is no terminal."""
    save_interval: int = 100
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk."""
    token_budget: int | None = None
    """Tokens of the final run that count in its loss (answer tokens of answer-only sources), for
    the epochs implied; default: those of all sources together."""
    tensorboard_dir: str | None = None
    """Folder of TensorBoard's event files (Megatron's --tensorboard-dir); default: none."""
    wandb_project: str | None = None
    """Project of Weights & Biases (Megatron's --wandb-project); default: none."""

    def __post_init__(self) -> None:
        budget = self.token_budget
        require(budget is None or budget >= 1, "output.token_budget", budget, "use at least 1")
        for name in ("log_interval", "save_interval", "keep_checkpoints"):
            require(
                getattr(self, name) >= 1, f"output.{name}", getattr(self, name), "use at least 1"
            )

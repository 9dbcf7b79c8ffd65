"""What a run writes."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_fastmix.config.require import folder_as_in_a_shell, require_at_least
from megatron_fastmix.config.tokens import tokens


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What the run leaves behind, and how often."""

    log_interval: int = 10
    """Steps between two lines of progress where there is no terminal."""
    save_interval: int = 100
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk."""
    token_budget: int | float | str | None = None
    """Older name of data.token_budget, for the epochs implied alone: the search does not see how
    often the run repeats a source. Default: the tokens of all sources together."""
    tensorboard_dir: str | None = None
    """Folder of TensorBoard's event files (Megatron's --tensorboard-dir); default: none. A ~ is as
    in run_dir."""
    wandb_project: str | None = None
    """Project of Weights & Biases (Megatron's --wandb-project); default: none."""

    def __post_init__(self) -> None:
        budget = tokens(self.token_budget, "output.token_budget")
        object.__setattr__(self, "token_budget", budget)
        if self.tensorboard_dir is not None:
            folder = folder_as_in_a_shell(self.tensorboard_dir, "output.tensorboard_dir")
            object.__setattr__(self, "tensorboard_dir", folder)
        require_at_least(self, "output", 1, ("log_interval", "save_interval", "keep_checkpoints"))

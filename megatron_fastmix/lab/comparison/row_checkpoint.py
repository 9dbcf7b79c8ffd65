"""A target model's training on disk, from which it goes on bitwise as if it had not stopped."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.errors import DataError

_DAMAGE = (
    *(OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError),
    pickle.UnpicklingError,
)
"""What torch.load and the restoring raise for files that are cut, altered or of another kind."""


@dataclass(kw_only=True)
class Progress:
    """What a training has besides its model and optimizer."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Read so far."""
    seconds: float = 0.0
    """Wall time of the processes before this one."""


class RowCheckpoint:
    """One file, written every `interval` steps; its name tells which training it is of."""

    def __init__(self, file: Path, interval: int) -> None:
        self.file, self.interval = file, interval

    def is_due(self, step: int) -> bool:
        """Whether `step` steps are to be saved."""
        return step % self.interval == 0

    def save(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        losses: list[float],
        progress: Progress,
    ) -> None:
        """Writes all that the steps to come depend on, in place of the file before. `losses` are
        those of the steps done. Raises `OSError`."""
        state = {
            "model": _tensors(model),
            "optimizer": optimizer.state_dict(),
            "random": _random_states(),
            "losses": losses,
            "progress": vars(progress),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.file, buffer.getvalue())

    def restore(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[list[float], Progress]:
        """Takes up the file, where there is one; returns the losses of the steps done, and where
        the training stands. Raises `DataError` for a damaged file."""
        if not self.file.exists():
            return [], Progress()
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            with torch.no_grad():
                for name, tensor in _tensors(model).items():
                    tensor.copy_(state["model"][name])
            optimizer.load_state_dict(state["optimizer"])
            _set_random_states(state["random"])
            return list(state["losses"]), Progress(**state["progress"])
        except _DAMAGE as error:  # whose own words are about PyTorch's options
            raise DataError(
                f"{self.file}: no checkpoint of this training ({type(error).__name__}); delete it "
                "to train anew"
            ) from None

    def remove(self) -> None:
        """Of a training that is finished."""
        self.file.unlink(missing_ok=True)


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _random_states() -> dict[str, Any]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])

"""TensorBoard and Weights & Biases, both optional, under the tags that Megatron writes.

Megatron's own tags are `lm loss`, `lm loss validation`, `learning-rate`, `batch-size`, `grad-norm`
and `iteration-time` (`training_log` in `megatron/training/training.py`); TensorBoard has each also
against samples, as `TAG vs samples` in a subfolder. What Megatron does not have is under
`fastmix/`.
"""

from __future__ import annotations

import importlib.util
import math
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.config import OutputConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.run.events import InnerStep, OuterStep
from megatron_fastmix.run.folder import SEED_PREFIX


class Tracker(Protocol):
    """Takes the scalars of one step."""

    def log(self, values: Mapping[str, float], step: int, samples: int) -> None:
        """Scalars by tag after `step` optimizer steps and `samples` samples."""

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """A picture of shape (height, width, 3), uint8, after `step` optimizer steps."""

    def close(self) -> None:
        """Writes what is left."""


def check_trackers(output: OutputConfig) -> None:
    """Raises `ConfigError` where a tracker is configured and its package is not installed."""
    for key, package, wanted in (
        ("tensorboard_dir", "tensorboard", output.tensorboard_dir),
        ("wandb_project", "wandb", output.wandb_project),
    ):
        if wanted is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"output.{key}: found {wanted!r}, and {package} is not installed; "
                f"pip install 'megatron-fastmix[{package}]', or leave the key out"
            )


def open_trackers(
    output: OutputConfig, folder: Path, step: int, batch_size: int, config: dict[str, Any]
) -> list[Tracker]:
    """The trackers that are configured, for a search that has done `step` steps of `batch_size`
    samples; one that cannot be opened (no key, no network) is passed over, and a line says so.

    Raises `ConfigError` where a package is missing.
    """
    check_trackers(output)
    wanted: list[Callable[[], Tracker]] = []
    if output.tensorboard_dir is not None:
        wanted.append(partial(TensorBoard, output.tensorboard_dir, step, batch_size))
    if output.wandb_project is not None:
        wanted.append(partial(WeightsAndBiases, output.wandb_project, folder, step, config))
    trackers = []
    for make in wanted:
        try:
            trackers.append(make())
        except Exception as error:
            print(f"megatron-fastmix: {type(error).__name__}: {error}: not logged there")
    return trackers


class TensorBoard:
    """Event files, as Megatron's --tensorboard-dir gets them."""

    def __init__(self, folder: str | Path, step: int, batch_size: int) -> None:
        """Events of later steps than `step`, left by a run that died, are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        # What is hidden is so on every axis of a folder, and one of samples is longer.
        self._by_samples = SummaryWriter(
            str(Path(folder) / "vs samples"), purge_step=(step + 1) * batch_size
        )

    def log(self, values: Mapping[str, float], step: int, samples: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
            if not tag.startswith("fastmix/"):
                self._by_samples.add_scalar(f"{tag} vs samples", value, samples)

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
        self._by_samples.close()


class WeightsAndBiases:
    """A run of the project; resuming a search resumes it. WANDB_MODE=offline keeps it here."""

    def __init__(self, project: str, folder: Path, step: int, config: dict[str, Any]) -> None:
        """A run of its own for a search that begins (`step` 0), since W&B drops steps that a run
        has had."""
        import wandb

        known = folder / "wandb_run_id"
        if step == 0 or not known.exists():
            write_atomically(known, uuid.uuid4().hex)
        alone = not folder.name.startswith(SEED_PREFIX)
        self._run = wandb.init(
            project=project,
            name=folder.name if alone else f"{folder.parent.name}/{folder.name}",
            id=known.read_text(),
            resume="allow",
            dir=str(folder.resolve()),
            config=config,
        )

    def log(self, values: Mapping[str, float], step: int, samples: int) -> None:
        self._run.log({**values, "samples vs steps": samples}, step=step)

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        import wandb

        self._run.log({tag: wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        self._run.finish()


def inner_scalars(event: InnerStep, batch_size: int) -> dict[str, float]:
    """The tags of one optimizer step; sources without a sample in it are left out."""
    scalars = {
        "lm loss": event.loss,
        "learning-rate": event.lr,
        "batch-size": float(batch_size),
        "iteration-time": event.seconds,
    }
    if event.grad_norm is not None and math.isfinite(event.grad_norm):
        scalars["grad-norm"] = event.grad_norm
    if event.nonfinite_gradients:
        scalars["fastmix/nonfinite gradients"] = float(event.nonfinite_gradients)
    for kind, values in (("source loss", event.source_loss), ("group loss", event.group_loss)):
        scalars |= _known(kind, values)
    return scalars


def outer_scalars(event: OuterStep, mean_target_loss: float) -> dict[str, float]:
    """The tags of one outer step."""
    scalars = {"lm loss validation": mean_target_loss}
    for kind, values in (
        ("target loss", event.target_loss),
        ("weight", event.weights),
        ("product", event.products),
        ("advantage", event.advantage),
        ("group weight", event.group_weights),
        ("group advantage", event.group_advantage),
    ):
        scalars |= _known(kind, values)
    if event.noise_to_signal is not None:
        scalars["fastmix/noise to signal"] = event.noise_to_signal
    return scalars


def _known(kind: str, values: Mapping[str, float] | None) -> dict[str, float]:
    """By tag, without NaN."""
    found = (values or {}).items()
    return {f"fastmix/{kind}/{name}": value for name, value in found if not math.isnan(value)}

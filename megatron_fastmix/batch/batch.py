"""The samples of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np
import torch


class Role(IntEnum):
    """What a sample is in its batch."""

    SOURCE = 0
    """Of a training source."""
    TARGET = 1
    """Of a held-out target."""
    PADDING = 2
    """A repeated sample that counts nowhere: ranks must make equally many passes."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B samples for one forward pass on one rank, in R rows of S tokens; B is the same on every
    rank. A row is a sample unless `segment` says otherwise."""

    tokens: torch.Tensor
    """(R, S) int64."""
    labels: torch.Tensor
    """(R, S) int64."""
    loss_mask: torch.Tensor
    """(R, S) float."""
    index: np.ndarray
    """(B,) int: which source or target each sample is of."""
    role: np.ndarray
    """(B,) of `Role`."""
    segment: torch.Tensor | None = None
    """(R, S) the sample that each token belongs to, −1 for padding; None where rows are samples."""
    positions: torch.Tensor | None = None
    """(R, S) where each token stands in its sample, or in its document under
    data.reset_position_ids; None where that is its place in the row."""
    blocks: torch.Tensor | None = None
    """(R, S) int64: tokens attend to those of their row with the same number alone; None where a
    row is one sample and one document, and causality does."""
    tokens_per_sample: torch.Tensor | None = None
    """(B,) by what the summed loss of a sample is divided: the mean number of answer tokens of a
    row of its source; None divides by the sample's own number of tokens in the loss."""
    counted: np.ndarray | None = None
    """(B,) `sample_weights`, worked out before the batch left the host; None asks the device."""

    @classmethod
    def of_sources(cls, index: np.ndarray, **tensors: torch.Tensor) -> Batch:
        """A batch whose samples are all of sources, `index` (B,); `tensors` are the others'."""
        return cls(index=index, role=np.full(len(index), Role.SOURCE), **tensors)

    @property
    def num_samples(self) -> int:
        """B."""
        return len(self.index)

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return self.tokens.numel() if self.segment is None else int((self.segment >= 0).sum())

    def of(self, role: Role) -> np.ndarray:
        """Which samples have this role, bool (B,)."""
        return self.role == role

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`, copied without waiting."""
        tensors = {
            field.name: send(value, device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, counted=self.sample_weights(), **tensors)

    def sample_weights(self) -> np.ndarray:
        """What each sample counts in a mean loss, float64 (B,): 1, or for answer-only rows their
        answer tokens over the mean, so that Σ losses / Σ weights is the loss per token."""
        if self.counted is not None:
            return self.counted
        if self.segment is None or self.tokens_per_sample is None:
            return np.ones(self.num_samples)
        tokens = torch.zeros_like(self.tokens_per_sample).index_add(
            0, self.segment.clamp_min(0).flatten(), self.loss_mask.double().flatten()
        )
        return (tokens / self.tokens_per_sample).cpu().numpy()


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`tensor`, of the host, on `device`. An accelerator copies it from pinned memory while the
    host goes on."""
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
